"""Export every shipped spec to every format, verify each file, and print a table.

    python tests/harness/export_specs.py [--to pt2,onnx] [--openvino] [SPEC...]

Each export runs in a process of its own. The exit code is 1 if one fails.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cnnspec.resources import resource

ENDINGS = {"torch": "py", "pt2": "pt2", "onnx": "onnx"}


def export(spec: str, form: str, folder: Path, limit: float) -> dict:
    """Export a spec in a process of its own; return the result, or an `error`."""
    file = folder / f"{spec}.{ENDINGS[form]}"
    command = [sys.executable, "-m", "cnnspec", "export", spec, str(file), "--json"]
    begin = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"error": f"more than {limit:.0f} s"}
    if done.returncode:
        return {"error": " ".join(done.stderr.split())[:200]}
    size = sum(path.stat().st_size for path in folder.iterdir())
    return {**json.loads(done.stdout), "total": time.perf_counter() - begin, "bytes": size}


def compare_openvino(file: Path) -> float:
    """Return the largest difference of a logit between OpenVINO and ONNX Runtime, in relation to the largest one."""
    import numpy as np
    import onnxruntime
    import openvino

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    shape = [1 if isinstance(size, str) else size for size in session.get_inputs()[0].shape]
    images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    expected = session.run(None, {"images": images})[0]
    found = openvino.Core().compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(images)[0]
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("specs", nargs="*", default=sorted(path.stem for path in resource("specs").glob("*.cnn")))
    parser.add_argument("--to", default="torch,pt2,onnx")
    parser.add_argument("--openvino", action="store_true")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds per export")
    given = parser.parse_args()
    failed = 0
    print("| network | format | seconds | MB | relative difference | OpenVINO |\n|---|---|---|---|---|---|")
    for spec in given.specs:
        for form in given.to.split(","):
            with tempfile.TemporaryDirectory() as folder:
                found = export(spec, form, Path(folder), given.limit)
                other = ""
                if "error" not in found and form == "onnx" and given.openvino:
                    other = f"{compare_openvino(Path(found['files'][0])):.1g}"
            if "error" in found:
                failed += 1
                print(f"| {spec} | {form} | failed: {found['error']} |", flush=True)
            else:
                figures = f"{found['total']:.1f} | {found['bytes'] / 1e6:.1f} | {found['relative']:.1g}"
                print(f"| {spec} | {form} | {figures} | {other} |", flush=True)
    print(f"{failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
