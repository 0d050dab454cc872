"""The embedded base model: a world, four domains about it, and a small Llama that was pretrained on it."""

from lori.scale_model.miniature import rows as rows
