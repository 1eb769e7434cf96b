"""The batch that suits a network: bounded memory, and no part of what is cached."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.artefacts.cache.record import CacheLayout
from pipeline.artefacts.cache.teacher_cache import TeacherCache
from pipeline.artefacts.objects.addresses import open_objects
from pipeline.data.loaders import BatchLoader
from pipeline.data.views import ViewSpec
from pipeline.models.zoo import build
from pipeline.runtime import memory
from pipeline.runtime.device import Runtime, resolve_runtime
from pipeline.teacher.batches import LARGEST_BATCH, LEAST_BATCH, fitting_batch
from pipeline.teacher.caching import TeacherPass, cache_views
from pipeline.teacher.frozen import KeptOutputs, Teacher, cache_identity
from stages.training.evaluation_images import EvaluationImages

ROOT = Path(__file__).parents[2]
CPU = Runtime(device=torch.device("cpu"), precision="fp32")


class Widening(nn.Module):
    """A network whose largest intermediate value has ``channels`` float32 maps of the image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, channels, 1)
        self.head = nn.Linear(channels, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.wide(images).mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("channels", "side", "expected"),
    [
        (64, 32, 128),  # 64 maps x 32 x 32 x 4 B = 256 KiB, and 32 MiB are allowed
        (64, 64, 32),
        (65, 64, 16),  # 31.5 images: the power of two below
        (64, 224, 2),
        (4, 4, LARGEST_BATCH),
        (1024, 224, LEAST_BATCH),  # even one image is above the limit
    ],
)
def test_the_largest_output_of_a_layer_stays_within_32_mib(channels, side, expected):
    assert fitting_batch(Widening(channels), (side, side), CPU) == expected


def test_half_precision_fits_twice_as_many_images():
    half = Runtime(device=torch.device("cpu"), precision="bf16")
    assert fitting_batch(Widening(64), (64, 64), half) == 64


def test_a_network_is_as_it_was_after_the_trial():
    model = build("resnet8a", num_classes=10).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sizes = {fitting_batch(model, (8, 8), CPU, most=most) for most in (512, 512, 1 << 20)}
    assert len(sizes) == 2
    assert max(sizes) > 512
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_cache_has_the_same_bytes_for_every_batch(prepared, tmp_path, precision):
    """The shards have 41 rows, so a batch of 8 leaves one image, which runs with other kernels.

    The products of the head with 41, 8 and 7 rows round in different ways too.
    """
    runtime = resolve_runtime(precision)
    torch.manual_seed(0)
    model = runtime.place(build("resnet20", num_classes=prepared.num_classes).eval())
    with torch.no_grad():
        model.head.weight.normal_()
    teacher = Teacher(
        model=model.requires_grad_(False),
        digest="d" * 64,
        mean=prepared.record.mean,
        std=prepared.record.std,
        target_in_sample=False,
        description="an untrained teacher",
    )
    beton, views = prepared.train, ViewSpec(padding=2, count=1)
    kept = KeptOutputs(features=True)
    identity = cache_identity(teacher, beton=beton, views=views, runtime=runtime, kept=kept)
    roots = set()
    for batch_size in (512, 41, 8, 7, 1):
        planned = TeacherPass(
            teacher=teacher,
            loader=BatchLoader(beton, batch_size=batch_size, view_spec=views),
            beton=beton,
            views=views,
            runtime=runtime,
            held_out=prepared.held_out,
        )
        place = open_objects(tmp_path / str(batch_size))
        assert (
            cache_views(place, planned, identity=identity, layout=CacheLayout(shard_rows=41)) == 0
        )
        roots.add(TeacherCache.open(place).root)
    assert len(roots) == 1


@pytest.mark.parametrize(("side", "expected"), [(32, 1000), (64, 1000), (224, 16), (448, 4)])
def test_large_images_are_evaluated_in_small_batches(prepared, monkeypatch, side, expected):
    made = []
    monkeypatch.setattr(
        "stages.training.evaluation_images.BatchLoader",
        lambda *_, batch_size, **__: made.append(batch_size),
    )
    monkeypatch.setattr("stages.training.evaluation_images.seen_size", lambda *_: (side, side))
    EvaluationImages(dataset=prepared, views=ViewSpec(), runtime=CPU).batches("test")
    assert made == [expected]


FAULTS = """
import json, resource, sys
import torch
from pipeline.runtime.memory import reuse_freed_memory

if sys.argv[1] == "reuse":
    reuse_freed_memory()

def batch():
    parts = [torch.ones(10 << 20) for _ in range(4)]  # 40 MiB each
    return sum(float(part[0]) for part in parts)

for _ in range(3):
    batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    batch()
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before))
"""


def faults(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, how], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_freed_memory_is_reused_by_the_next_batch():
    assert memory.REUSED_BYTES > 40 << 20
    usual, reusing = faults("usual"), faults("reuse")
    assert reusing < 0.2 * usual, (usual, reusing)
