"""Configs of a dataset, a training and an evaluation, as small as they come."""

from lori.config import DataConfig, EvalConfig, TrainConfig

DATA = DataConfig("miniature", "nlu", "test", num_rows=3)
TRAIN = TrainConfig("scale@0123", ("q_proj",), "lori-s", "nlu", 6, 12, 1e-3, 1, 16, 512, 256, seed=0)
EVALUATE = EvalConfig("nlu", 1, 0.0, 1.0, 8, 3000, 512, 256, seed=0)
