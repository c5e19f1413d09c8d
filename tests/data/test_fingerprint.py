import json
import shutil
from pathlib import Path

import pytest
from local_server import serving
from tiny_verbs import ground_truth, save_ground_truth

from maskrcnn_lit.data import fingerprint as module
from maskrcnn_lit.data.fingerprint import fingerprint
from maskrcnn_lit.data.index import AnnotationIndex, read_index

pytest_plugins = ("tiny_verbs",)
