"""The blur of the study's teacher is torchvision's Gaussian, and the network has a head."""

import torch
from torchvision.transforms.v2.functional import gaussian_blur

from benchmarks.study.networks import SIGMA, Blur
from pipeline.models.probing import require_image_size
from pipeline.models.zoo import build


def test_it_is_the_blur_of_torchvision():
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = gaussian_blur(images, kernel_size=[9, 9], sigma=[SIGMA, SIGMA])
    torch.testing.assert_close(Blur()(images), expected, rtol=0, atol=1e-6)


def test_the_network_is_built_by_its_name():
    model = build("benchmarks.study.networks:blurred_resnet20a", num_classes=10)
    require_image_size(model, (32, 32))
    assert model.head.out_features == 10
    assert model.head.in_features == 64
