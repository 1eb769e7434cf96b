"""Description of the machine in the record of a run."""

import platform
import subprocess
from pathlib import Path

import pytest
import torch

from pipeline.runtime import device as runtime
from tests.support.learners import CPU


@pytest.mark.skipif(platform.machine() != "x86_64", reason="lscpu names other processors by part")
def test_the_processor_is_the_one_that_lscpu_names():
    printed = subprocess.run(["lscpu"], env={"LC_ALL": "C"}, capture_output=True, text=True).stdout
    (line,) = [line for line in printed.splitlines() if line.startswith("Model name:")]
    assert runtime.processor() == line.partition(":")[2].strip()


@pytest.mark.parametrize("text", [None, "processor\t: 0\nBogoMIPS\t: 50.00\n", "model name\t: \n"])
def test_a_processor_without_a_name_is_named_by_its_instruction_set(text, tmp_path, monkeypatch):
    path = Path(tmp_path / "cpuinfo")
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(runtime, "_CPU_INFO", path)
    assert runtime.processor() == f"{platform.machine()} CPU"


@pytest.mark.parametrize(("number", "threads"), [(1, "1 thread"), (2, "2 threads")])
def test_a_description_names_processor_threads_and_precision(monkeypatch, number, threads):
    monkeypatch.setattr(runtime, "processor", lambda: "Some CPU")
    monkeypatch.setattr(torch, "get_num_threads", lambda: number)
    described = runtime.Runtime(device=CPU, precision="bf16").description
    assert described == f"Some CPU, {threads}, bf16"
