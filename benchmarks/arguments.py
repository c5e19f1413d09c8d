"""What the benchmarks of a training step have on their command line."""

import argparse
from pathlib import Path


def step_parser(
    description: str | None, *, size: tuple[int, int], batch: int, steps: int, device: str
) -> argparse.ArgumentParser:
    """--coco, --size, --batch, --steps and --device, with these defaults."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--coco", type=Path, required=True)
    parser.add_argument("--size", type=int, nargs=2, default=size)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--device", choices=("cpu", "cuda"), default=device)
    return parser
