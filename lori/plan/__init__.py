"""Plan before spending. What each name is, `__init__.pyi` says; it is imported when first used, as most runs don't."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
