"""ResNet-18 encoder: shapes, names, and the first convolution tiled over several images."""

import pytest
import torch

from endomust_core.learning.networks.resnet import CHANNELS, ResNet18, tile_first_conv


def test_five_maps_at_strides_2_to_32():
    with torch.no_grad():
        maps = ResNet18(images=2).eval()(torch.rand(1, 6, 64, 96))
    assert [tuple(features.shape) for features in maps] == [
        (1, channels, 64 // stride, 96 // stride) for channels, stride in zip(CHANNELS, (2, 4, 8, 16, 32), strict=True)
    ]


@pytest.mark.parametrize(("images", "with_classifier"), [(1, 11_689_512), (2, 11_698_920)])
def test_parameters_are_those_of_resnet18_without_its_classifier(images, with_classifier):
    classifier = 512 * 1000 + 1000
    assert sum(parameter.numel() for parameter in ResNet18(images).parameters()) == with_classifier - classifier


def test_names_are_torchvisions():
    names = ResNet18().state_dict().keys()
    assert len(names) == 120  # 122 with the classifier
    assert {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer2.0.downsample.1.weight"} <= names
    assert "layer1.0.downsample.0.weight" not in names and "layer4.1.bn2.num_batches_tracked" in names


def test_a_tiled_first_convolution_answers_equal_images_as_one():
    weight = torch.rand(64, 3, 7, 7)
    image = torch.rand(1, 3, 16, 16)
    one = torch.nn.functional.conv2d(image, weight)
    three = torch.nn.functional.conv2d(image.repeat(1, 3, 1, 1), tile_first_conv(weight, 3))
    assert torch.allclose(one, three, rtol=1e-4)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_narrow_encoder_keeps_the_names_and_takes_odd_sizes(norm):
    network = ResNet18(images=1, width=12, norm=norm).eval()
    assert network.channels == (12, 12, 24, 48, 96)
    with torch.no_grad():
        maps = network(torch.rand(1, 3, 75, 41))
    assert [tuple(features.shape) for features in maps] == [
        (1, channels, -(-75 // stride), -(-41 // stride))
        for channels, stride in zip(network.channels, (2, 4, 8, 16, 32), strict=True)
    ]
    learned = {name for name, _ in network.named_parameters()}
    assert learned == {name for name, _ in ResNet18().named_parameters()}


def test_the_default_encoder_is_the_published_one():
    assert ResNet18().channels == CHANNELS
    assert isinstance(ResNet18().bn1, torch.nn.BatchNorm2d)


def test_group_norm_treats_every_image_alone_in_training_and_after():
    network = ResNet18(width=12, norm="group")
    assert (network.bn1.num_groups, network.layer4[0].bn1.num_groups) == (4, 8)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        both, first = network.train()(images)[-1], network.eval()(images[:1])[-1]
    assert torch.allclose(both[:1], first, atol=1e-5)
    with pytest.raises(ValueError, match="norm is 'layer'; choose one of batch, group"):
        ResNet18(norm="layer")
