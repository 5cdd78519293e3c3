"""Inception v3 as FID takes it (Szegedy et al. 2015, arXiv:1512.00567; Heusel et al. 2017, arXiv:1706.08500): the 2048 numbers
before its classifier.

Layers have torchvision's names, under which the weights of TensorFlow's network of 2015-12-05 are known. That network differs
from torchvision's: averages leave out the border, and the last block takes the maximum.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from cpo_ray.evaluation.scorers.readers.base import Reader

#: The classifiers, which no feature passes.
_UNUSED = ("fc.", "AuxLogits.")


class _Normalised(nn.Module):
    """Batch normalisation as it was when training ended."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=0.001)


class _Convolution(nn.Module):
    """A convolution that keeps the size unless it is told otherwise, normalised, and positive."""

    def __init__(self, given: int, made: int, size: tuple[int, int] = (1, 1), stride: int = 1, *, border: bool = True) -> None:
        super().__init__()
        padding = (size[0] // 2, size[1] // 2) if border else (0, 0)
        self.conv = nn.Conv2d(given, made, size, stride, padding, bias=False)
        self.bn = _Normalised(made)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))


def _average(x: Tensor) -> Tensor:
    return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class _BlockA(nn.Module):
    def __init__(self, given: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = _Convolution(given, 64)
        self.branch5x5_1 = _Convolution(given, 48)
        self.branch5x5_2 = _Convolution(48, 64, (5, 5))
        self.branch3x3dbl_1 = _Convolution(given, 64)
        self.branch3x3dbl_2 = _Convolution(64, 96, (3, 3))
        self.branch3x3dbl_3 = _Convolution(96, 96, (3, 3))
        self.branch_pool = _Convolution(given, pooled)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        parts = (self.branch1x1(x), self.branch5x5_2(self.branch5x5_1(x)), double, self.branch_pool(_average(x)))
        return torch.cat(parts, 1)


class _BlockB(nn.Module):
    def __init__(self, given: int) -> None:
        super().__init__()
        self.branch3x3 = _Convolution(given, 384, (3, 3), 2, border=False)
        self.branch3x3dbl_1 = _Convolution(given, 64)
        self.branch3x3dbl_2 = _Convolution(64, 96, (3, 3))
        self.branch3x3dbl_3 = _Convolution(96, 96, (3, 3), 2, border=False)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat((self.branch3x3(x), double, functional.max_pool2d(x, 3, stride=2)), 1)


class _BlockC(nn.Module):
    def __init__(self, given: int, narrow: int) -> None:
        super().__init__()
        across, down = (1, 7), (7, 1)
        self.branch1x1 = _Convolution(given, 192)
        self.branch7x7_1 = _Convolution(given, narrow)
        self.branch7x7_2 = _Convolution(narrow, narrow, across)
        self.branch7x7_3 = _Convolution(narrow, 192, down)
        self.branch7x7dbl_1 = _Convolution(given, narrow)
        self.branch7x7dbl_2 = _Convolution(narrow, narrow, down)
        self.branch7x7dbl_3 = _Convolution(narrow, narrow, across)
        self.branch7x7dbl_4 = _Convolution(narrow, narrow, down)
        self.branch7x7dbl_5 = _Convolution(narrow, 192, across)
        self.branch_pool = _Convolution(given, 192)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat((self.branch1x1(x), single, double, self.branch_pool(_average(x))), 1)


class _BlockD(nn.Module):
    def __init__(self, given: int) -> None:
        super().__init__()
        self.branch3x3_1 = _Convolution(given, 192)
        self.branch3x3_2 = _Convolution(192, 320, (3, 3), 2, border=False)
        self.branch7x7x3_1 = _Convolution(given, 192)
        self.branch7x7x3_2 = _Convolution(192, 192, (1, 7))
        self.branch7x7x3_3 = _Convolution(192, 192, (7, 1))
        self.branch7x7x3_4 = _Convolution(192, 192, (3, 3), 2, border=False)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat((single, seven, functional.max_pool2d(x, 3, stride=2)), 1)


class _BlockE(nn.Module):
    def __init__(self, given: int, *, last: bool = False) -> None:
        super().__init__()
        self._last = last
        self.branch1x1 = _Convolution(given, 320)
        self.branch3x3_1 = _Convolution(given, 384)
        self.branch3x3_2a = _Convolution(384, 384, (1, 3))
        self.branch3x3_2b = _Convolution(384, 384, (3, 1))
        self.branch3x3dbl_1 = _Convolution(given, 448)
        self.branch3x3dbl_2 = _Convolution(448, 384, (3, 3))
        self.branch3x3dbl_3a = _Convolution(384, 384, (1, 3))
        self.branch3x3dbl_3b = _Convolution(384, 384, (3, 1))
        self.branch_pool = _Convolution(given, 192)

    def forward(self, x: Tensor) -> Tensor:
        single, double = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = functional.max_pool2d(x, 3, stride=1, padding=1) if self._last else _average(x)
        parts = (
            self.branch1x1(x),
            self.branch3x3_2a(single),
            self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(pooled),
        )
        return torch.cat(parts, 1)


class InceptionReader(Reader):
    """Reads (N, 2048) features from pictures stretched to 299 × 299, with values from -1 to 1."""

    side = 299
    fit = "stretch"
    mean = deviation = (0.5, 0.5, 0.5)

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolution(3, 32, (3, 3), 2, border=False)
        self.Conv2d_2a_3x3 = _Convolution(32, 32, (3, 3), border=False)
        self.Conv2d_2b_3x3 = _Convolution(32, 64, (3, 3))
        self.Conv2d_3b_1x1 = _Convolution(64, 80)
        self.Conv2d_4a_3x3 = _Convolution(80, 192, (3, 3), border=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _BlockA(192, 32), _BlockA(256, 64), _BlockA(288, 64)
        self.Mixed_6a = _BlockB(288)
        self.Mixed_6b, self.Mixed_6c = _BlockC(768, 128), _BlockC(768, 160)
        self.Mixed_6d, self.Mixed_6e = _BlockC(768, 160), _BlockC(768, 192)
        self.Mixed_7a = _BlockD(768)
        self.Mixed_7b, self.Mixed_7c = _BlockE(1280), _BlockE(2048, last=True)

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 2048)."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(pixels)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(functional.max_pool2d(x, 3, stride=2)))
        x = functional.max_pool2d(x, 3, stride=2)
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x = block(x)
        features: Tensor = x.mean((2, 3))
        return features


def feature_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that features need: without the classifiers, and without counters, which only training reads."""
    return {
        name: values
        for name, values in tensors.items()
        if not name.startswith(_UNUSED) and not name.endswith("num_batches_tracked")
    }
