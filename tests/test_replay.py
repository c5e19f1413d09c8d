"""A training step whose loss is not finite: what the run leaves, and `maskrcnn-lit replay` of it."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_verbs import MODEL, SCHEDULE, ground_truth, one_sentence, result, run_script, script, verb

pytest_plugins = ("tiny_verbs",)

LOSSES = ("rpn_objectness", "rpn_box", "class", "box", "mask")
