"""LoRI (arXiv 2504.07448) on PyTorch, transformers and PEFT: what a researcher with an own dataset needs.

What each name is, `__init__.pyi` says; it is imported when it is first used, so that `lori.config` stays light.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
