"""The LoRI adapter (paper, section 3): the layer, its masks (3.2), merging (3.3), and its files."""
