"""U-Net decoder: sizes, names of the published decoders, reflection at the border, and any size of image."""

import pytest
import torch

from endomust_core.learning.networks.resnet import ResNet18
from endomust_core.learning.networks.unet import ConvBlock, ReflectConv, UNet

CHANNELS = (3, 4, 5, 6, 7)
WIDTHS = (2, 3, 4, 5, 6)


def maps(height: int, width: int, channels=CHANNELS) -> list[torch.Tensor]:
    """Maps as an encoder gives them: sides rounded up at strides 2 to 32."""
    torch.manual_seed(0)
    return [
        torch.rand(2, count, -(-height // stride), -(-width // stride))
        for count, stride in zip(channels, (2, 4, 8, 16, 32), strict=True)
    ]


@pytest.mark.parametrize("upsample", ["bilinear", "nearest"])
@pytest.mark.parametrize(("height", "width"), [(64, 96), (63, 75), (33, 50), (32, 32)])
def test_scale_0_has_the_size_of_the_image_whatever_it_is(height, width, upsample):
    features = UNet(CHANNELS, WIDTHS, upsample)(maps(height, width), (height, width))
    assert [tuple(scale.shape) for scale in features] == [
        (2, channels, -(-height // 2**scale), -(-width // 2**scale)) for scale, channels in enumerate(WIDTHS[:4])
    ]


def test_without_a_size_the_finest_level_is_twice_the_finest_map():
    assert UNet(CHANNELS, WIDTHS)(maps(63, 75))[0].shape == (2, 2, 64, 76)


def test_convolutions_stand_in_the_published_order():
    channels = ResNet18().channels
    decoder = UNet(channels).state_dict()
    shapes = [tuple(decoder[f"decoder.{index}.conv.conv.weight"].shape) for index in range(10)]
    outputs, inputs = (256, 256, 128, 128, 64, 64, 32, 32, 16, 16), (512, 512, 256, 256, 128, 128, 64, 96, 32, 16)
    assert shapes == [(*row, 3, 3) for row in zip(outputs, inputs, strict=True)]
    assert len(decoder) == 20


def test_a_level_is_enlarged_before_its_second_convolution_and_joined_in_front_of_the_skip():
    network = UNet(CHANNELS, WIDTHS, "nearest")
    given = maps(32, 32)
    coarse = network.decoder[0](given[4])
    joined = torch.cat([coarse.expand(-1, -1, 2, 2), given[3]], dim=1)  # 1×1 → 2×2
    seen = []
    network.decoder[1].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    network(given, (32, 32))
    assert torch.equal(seen[0], joined)


def test_borders_are_reflected():
    conv = ReflectConv(1, 1)
    torch.nn.init.zeros_(conv.conv.bias)
    conv.conv.weight.data = torch.tensor([[[[0.0, 1.0, 0.0], [10.0, 0.0, 0.0], [0.0, 0.0, 0.0]]]])  # above + 10 × left
    image = torch.tensor([[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]])
    with torch.no_grad():
        assert conv(image)[0, 0].tolist() == [[24.0, 15.0, 26.0], [51.0, 42.0, 53.0]]
        assert conv(torch.full((1, 1, 1, 1), 2.0)).item() == 22.0  # nothing to reflect: repeated


def test_a_block_ends_in_elu():
    block = ConvBlock(1, 1)
    torch.nn.init.zeros_(block.conv.conv.weight)
    torch.nn.init.constant_(block.conv.conv.bias, -1.0)
    assert block(torch.rand(1, 1, 4, 4)).flatten()[0].item() == pytest.approx(torch.e**-1.0 - 1.0)


def test_channels_last_stays_so_and_changes_nothing():
    network, given = UNet(CHANNELS, WIDTHS), maps(40, 56)
    with torch.no_grad():
        plain = network(given, (40, 56))
        last = network([features.to(memory_format=torch.channels_last) for features in given], (40, 56))
    assert last[0].is_contiguous(memory_format=torch.channels_last)
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(plain, last, strict=True))


def test_impossible_decoders_are_refused_in_words():
    with pytest.raises(ValueError, match="choose one of bilinear, nearest"):
        UNet(CHANNELS, WIDTHS, "cubic")
    with pytest.raises(ValueError, match="five levels"):
        UNet(CHANNELS[:4], WIDTHS)
