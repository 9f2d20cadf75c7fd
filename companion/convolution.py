r"""Convolutional networks: the same small detector at every place of an image.

Taught in chapter *Convolution*. Names, arguments and defaults are those of
:mod:`torch.nn.functional`, and of :mod:`torch.nn` for the modules, and a state dict moves both
ways. Left out: ``padding_mode`` (zeros only) and ``return_indices``. The transforms of
:mod:`torch.func` do not work on :func:`conv2d` and :func:`max_pool2d`.

**One implementation for all sizes.** A convolution is a product of the weights with a matrix
whose columns are patches of the image (*im2col*). Written out, that matrix is as many times
larger than the image as the kernel has elements. Here the image is stored with its rows
outermost and the batch innermost, (height, channels, width, batch), and only the ``kernel
width`` neighbours along a row are copied. The patch of ``kernel height`` rows that one row of
the output needs is then a stretch of memory without a gap: it is looked at, not copied. Only a
depthwise convolution, which sums over no channels, is a loop over the kernel instead. The
output keeps that order in memory: ``flatten`` and ``reshape`` work on it as on any tensor,
``view`` may ask for one of them.

Reference: LeCun, Bottou, Bengio and Haffner, *Gradient-based learning applied to document
recognition*, Proceedings of the IEEE 86 (1998).
"""

import math
from collections.abc import Sequence
from functools import reduce
from itertools import product
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn.functional import pad

from companion.activations import ReLU, relu
from companion.checks import accepts, check_alike, checked
from companion.layers import MLP, Sequential, kaiming_uniform_

__all__ = [
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "Conv2d",
    "Convolution",
    "DepthwiseConvolution",
    "Flatten",
    "LeNet",
    "MaxPool2d",
    "MaxPooling",
    "adaptive_avg_pool2d",
    "avg_pool2d",
    "conv2d",
    "max_pool2d",
    "output_size",
    "receptive_field",
]


@checked
def output_size(
    size: int,
    kernel_size: int,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    ceil_mode: bool = False,
) -> int:
    r"""How many places a kernel has along one side of an image.

    .. math:: \left\lfloor \frac{n + 2p - d\,(k - 1) - 1}{s} \right\rfloor + 1

    Reference: Dumoulin and Visin, *A guide to convolution arithmetic for deep learning*,
    arXiv:1603.07285 (2016).

    Args:
        size: :math:`n`, pixels along that side.
        kernel_size: :math:`k`, elements of the kernel along it.
        stride: :math:`s`, pixels from one place to the next.
        padding: :math:`p`, pixels added at either end.
        dilation: :math:`d`, pixels from one element of the kernel to the next.
        ceil_mode: Round up: the last window may reach beyond the padded image, if it starts
            before the image ends.

    Returns:
        The number of places, at least one.

    Raises:
        ValueError: If an argument is out of its range, or the kernel reaches further than the
            padded image.
    """
    if min(kernel_size, stride, dilation) < 1 or padding < 0:
        raise ValueError(
            "kernel_size, stride and dilation must be at least 1 and padding at least 0, "
            f"got {kernel_size}, {stride}, {dilation} and {padding}"
        )
    reach = dilation * (kernel_size - 1) + 1
    spare = size + 2 * padding - reach
    if spare < 0:
        raise ValueError(
            f"the kernel reaches over {reach} pixels, but the image has {size}, with padding "
            f"{size + 2 * padding}: pad more, take a smaller kernel or dilation, or pool less "
            "before"
        )
    if ceil_mode:
        # each starts before the image ends
        return min(-(-spare // stride) + 1, -(-(size + padding) // stride))
    return spare // stride + 1


@checked
def receptive_field(layers: Sequence[Sequence[int]]) -> tuple[int, int]:
    r"""How much of the input one number sees, after several convolutions or poolings.

    A layer's kernel spans :math:`d\,(k - 1) + 1` numbers of its input, and these are :math:`j`
    pixels apart:

    .. math:: r_l = r_{l-1} + d_l\,(k_l - 1)\,j_{l-1}, \qquad j_l = s_l\,j_{l-1}, \qquad
              r_0 = j_0 = 1

    Args:
        layers: For each layer kernel size :math:`k`, stride :math:`s` and, if it is not 1,
            dilation :math:`d` along one side: ``[(5, 1), (2, 2)]`` is a 5 × 5 convolution with
            a 2 × 2 pooling after it.

    Returns:
        The side of the receptive field, :math:`r`, and how far apart those of neighbours are,
        :math:`j`; in pixels.

    Raises:
        ValueError: If a layer is not two or three positive numbers.
    """
    side = apart = 1
    for layer in layers:
        if len(layer) not in (2, 3) or min(layer) < 1:
            raise ValueError(
                "expected (kernel_size, stride) or (kernel_size, stride, dilation) for each "
                f"layer, all at least 1, got {layer}"
            )
        kernel_size, stride, dilation = (*layer, 1)[:3]
        side += dilation * (kernel_size - 1) * apart
        apart *= stride
    return side, apart


@checked
def conv2d(
    input: Float[Tensor, "*batch in_channels height width"],
    weight: Float[Tensor, "out_channels in_group kernel_height kernel_width"],
    bias: Float[Tensor, " out_channels"] | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Float[Tensor, "*batch out_channels out_height out_width"]:
    r"""The same weighted sum of neighbours at every place of an image, one such sum for each
    output channel.

    With stride :math:`s`, dilation :math:`d` and an image :math:`x` that has been padded with
    zeros,

    .. math:: y_{o h w} = b_o + \sum_{c, i, j} W_{o c i j}\, x_{c,\; s h + d i,\; s w + d j}

    and the gradients, each sum over all places :math:`(h, w)` and examples where the weight met
    that pixel,

    .. math:: \frac{\partial L}{\partial W_{o c i j}}
                  = \sum_{h, w} g_{o h w}\, x_{c,\; s h + d i,\; s w + d j}, \qquad
              \frac{\partial L}{\partial b_o} = \sum_{h, w} g_{o h w}, \qquad
              \frac{\partial L}{\partial x_{c u v}} = \sum_{o, i, j} W_{o c i j}\, g_{o h w}
              \text{ with } s h + d i = u,\ s w + d j = v.

    (Strictly this is a cross-correlation: a mathematician's convolution flips the kernel. The
    field calls it convolution, and so does PyTorch.) With ``groups`` each group of input
    channels feeds its own group of outputs.

    References: LeCun, Boser, Denker, Henderson, Howard, Hubbard and Jackel, *Backpropagation
    applied to handwritten zip code recognition*, Neural Computation 1 (1989); for im2col
    Chellapilla, Puri and Simard, *High performance convolutional neural networks for document
    processing*, IWFHR (2006).

    Args:
        input: Images, (batch, channels, height, width), or a single one without the batch.
        weight: One kernel for each output channel.
        bias: One number for each output channel, or ``None``.
        stride: Pixels from one place to the next, for both sides or (down, across).
        padding: Zeros added at either end of each side; ``"valid"`` for none, ``"same"`` for an
            output as large as the input (with an even kernel the odd zero goes to the end).
        dilation: Pixels from one element of the kernel to the next.
        groups: Into how many groups the channels are split.

    Returns:
        The images of weighted sums, one channel for each kernel.

    Raises:
        ValueError: If the input is no image, channels and groups do not fit, an option is out
            of its range, or the kernel is larger than the padded image.
    """
    images, batched = _batched(input)
    _check_groups(groups, images.shape[1], len(weight))
    if images.shape[1] != weight.shape[1] * groups:
        raise ValueError(
            f"the kernels are for {weight.shape[1] * groups} input channels, the images have "
            f"{images.shape[1]}: weights have the shape (out_channels, in_channels / groups, "
            f"height, width), here {tuple(weight.shape)}"
        )
    stride, dilation = _pair(stride, "stride"), _pair(dilation, "dilation")
    edges = _edges(images.shape[2:], weight.shape[2:], stride, padding, dilation)
    if 1 < groups == images.shape[1]:  # several kernels for a channel: as many copies of it
        images = images.repeat_interleave(len(weight) // groups, 1)
        output = DepthwiseConvolution.apply(images, weight, bias, stride, edges, dilation)
    else:  # convolutions side by side
        biases = [None] * groups if bias is None else bias.chunk(groups)
        parts = zip(images.chunk(groups, 1), weight.chunk(groups), biases, strict=True)
        parts = [Convolution.apply(*part, stride, edges, dilation) for part in parts]
        output = parts[0] if groups == 1 else torch.cat(parts, 1)
    return output if batched else output[0]


class Convolution(torch.autograd.Function):
    """The convolution of one group of channels, and its gradients: see :func:`conv2d`.

    The image is kept as (height, channels, width, batch). The patches are a matrix for each row
    of the output, and all three products (output, gradient of the weights, gradient of the
    image) are products with it or of its shape.
    """

    @staticmethod
    @checked
    def forward(
        ctx: Any,
        x: Float[Tensor, "batch channels height width"],
        weight: Float[Tensor, "out_channels channels kernel_height kernel_width"],
        bias: Float[Tensor, " out_channels"] | None,
        stride: tuple[int, int],
        edges: tuple[int, int, int, int],
        dilation: tuple[int, int],
    ) -> Float[Tensor, "batch out_channels out_height out_width"]:
        """Weights times patches, plus bias."""
        check_alike("the kernel", x, weight, bias)
        kh, kw = weight.shape[2:]
        rows = _rows(_rows_outermost(x, edges), kw, stride[1], dilation[1])
        patches = _patches(rows, kh, stride[0], dilation[0])
        W = weight.transpose(1, 2).flatten(1)  # (out_channels, kh · channels · kw)
        start = x.new_zeros(()) if bias is None else bias[:, None]
        y = torch.baddbmm(start, W.expand(len(patches), -1, -1), patches)
        y = y.unflatten(2, rows.shape[2:])  # (out_height, out_channels, out_width, batch)
        ctx.save_for_backward(x, weight, rows)
        ctx.options = stride, edges, dilation
        return y.permute(3, 1, 0, 2)

    @staticmethod
    def backward(
        ctx: Any, g: Float[Tensor, "batch out_channels out_height out_width"]
    ) -> tuple[Tensor | None, ...]:
        """The gradients of image, weights and bias, each only where it is wanted."""
        x, weight, rows = ctx.saved_tensors
        stride, edges, dilation = ctx.options
        (kh, kw), (height, width) = weight.shape[2:], x.shape[2:]
        if torch.is_grad_enabled():  # for a second derivative rows must depend on x again
            rows = _rows(_rows_outermost(x, edges), kw, stride[1], dilation[1])
        g = _rows_outermost(g)
        *_, out_width, batch = g.shape
        dy = g.flatten(2)  # (out_height, out_channels, out_width · batch)
        dx = dW = db = None
        if ctx.needs_input_grad[0]:
            drows = torch.zeros_like(rows)
            W = weight.permute(2, 1, 3, 0).flatten(1, 2)  # (kh, channels · kw, out_channels)
            for h, g_row in enumerate(dy):  # each row of the output to the rows that it saw
                seen = _every(dilation[0], kh, h * stride[0])
                drows.flatten(2)[seen].baddbmm_(W, g_row.expand(kh, -1, -1))
            drows = drows.unflatten(1, (-1, kw))
            left, right, top, _ = edges
            dx = x.new_zeros(len(rows), x.shape[1], left + width + right, batch)
            for j in range(kw):
                dx[:, :, _every(stride[1], out_width, j * dilation[1])].add_(drows[:, :, j])
            dx = dx[top : top + height, :, left : left + width].permute(3, 1, 0, 2)
        if ctx.needs_input_grad[1]:
            patches = _patches(rows, kh, stride[0], dilation[0])
            dW = torch.addbmm(dy.new_zeros(()), dy, patches.transpose(1, 2))
            dW = dW.view(len(weight), kh, -1, kw).transpose(1, 2)
        if ctx.needs_input_grad[2]:
            db = g.sum((0, 2, 3))
        return dx, dW, db, None, None, None


class DepthwiseConvolution(torch.autograd.Function):
    """A convolution of each channel with a kernel of its own, and its gradients: see
    :func:`conv2d`.

    Nothing is summed over channels, so there is no matrix product: one position in the kernel
    after the other meets all the pixels that it lies on.

    Reference: Chollet, *Xception: deep learning with depthwise separable convolutions*, CVPR
    (2017).
    """

    @staticmethod
    @checked
    def forward(
        ctx: Any,
        x: Float[Tensor, "batch channels height width"],
        weight: Float[Tensor, "channels 1 kernel_height kernel_width"],
        bias: Float[Tensor, " channels"] | None,
        stride: tuple[int, int],
        edges: tuple[int, int, int, int],
        dilation: tuple[int, int],
    ) -> Float[Tensor, "batch channels out_height out_width"]:
        """Weight times pixels, added up over the positions in the kernel, plus bias."""
        check_alike("the kernel", x, weight, bias)
        image = _rows_outermost(x, edges)
        height, channels, width, batch = image.shape
        options = (height, width), weight.shape[2:], stride, (0, 0), dilation
        size = [output_size(*side) for side in zip(*options, strict=True)]
        places = _places(size, weight.shape[2:], stride, dilation)
        y = x.new_zeros(size[0], channels, size[1], batch)
        for w, (rows, columns) in zip(_positions(weight), places, strict=True):
            y.addcmul_(w, image[rows, :, columns])
        if bias is not None:
            y.add_(bias[:, None, None])
        ctx.save_for_backward(x, weight, image)
        ctx.options = edges, places
        return y.permute(3, 1, 0, 2)

    @staticmethod
    def backward(
        ctx: Any, g: Float[Tensor, "batch channels out_height out_width"]
    ) -> tuple[Tensor | None, ...]:
        """The gradients of image, weights and bias, each only where it is wanted."""
        x, weight, image = ctx.saved_tensors
        edges, places = ctx.options
        if torch.is_grad_enabled():  # for a second derivative image must depend on x again
            image = _rows_outermost(x, edges)
        g = _rows_outermost(g)
        dx = dW = db = None
        if ctx.needs_input_grad[0]:
            dx = torch.zeros_like(image)
            for w, (rows, columns) in zip(_positions(weight), places, strict=True):
                dx[rows, :, columns].addcmul_(w, g)
            left, _, top, _ = edges
            dx = dx[top : top + x.shape[2], :, left : left + x.shape[3]].permute(3, 1, 0, 2)
        if ctx.needs_input_grad[1]:
            products = ((g * image[rows, :, columns]) for rows, columns in places)
            dW = torch.stack([p.sum((2, 3)).sum(0) for p in products], 1).view_as(weight)
        if ctx.needs_input_grad[2]:
            db = g.sum((2, 3)).sum(0)
        return dx, dW, db, None, None, None


def _positions(weight):
    """For each position in the kernel its weight in every channel, (channels, 1, 1)."""
    return weight.flatten(1).T[..., None, None]


def _places(size, kernel, stride, dilation):
    """For each position in the kernel the pixels, as slices of rows and columns, on which it
    comes to lie.
    """
    return [
        (
            _every(stride[0], size[0], i * dilation[0]),
            _every(stride[1], size[1], j * dilation[1]),
        )
        for i, j in product(range(kernel[0]), range(kernel[1]))
    ]


def _rows_outermost(x, edges=(0, 0, 0, 0)):
    """Images as (height, channels, width, batch), with zeros at their edges."""
    left, right, top, bottom = edges
    x = x.permute(2, 1, 3, 0)
    if any(edges):
        x = pad(x, (0, 0, left, right, 0, 0, top, bottom))
    return x.contiguous()


def _rows(x, kw, stride, dilation):
    """The neighbours along each row, everywhere: (height, channels · kw, out_width, batch)."""
    windows = x.unfold(2, dilation * (kw - 1) + 1, stride)[..., ::dilation]
    return windows.permute(0, 1, 4, 2, 3).flatten(1, 2).contiguous()


def _patches(rows, kh, stride, dilation):
    """The rows under the kernel, one below the other, for all places down: a view, unless they
    are dilated.

    The shape is (out_height, kh · channels · kw, out_width · batch).
    """
    windows = rows.flatten(2).unfold(0, dilation * (kh - 1) + 1, stride)[..., ::dilation]
    return windows.permute(0, 3, 1, 2).flatten(1, 2)


def _every(step, count, start):
    """The slice start, start + step, ..., of ``count`` entries."""
    return slice(start, start + step * (count - 1) + 1, step)


@accepts(return_indices=False)
@checked
def max_pool2d(
    input: Float[Tensor, "*batch channels height width"],
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
) -> Float[Tensor, "*batch channels out_height out_width"]:
    r"""The largest number of each window: whether a detector has fired near by, no longer
    where.

    .. math:: y_{c h w} = \max_{i, j} x_{c,\; s h + d i,\; s w + d j}

    The gradient, which has to be finite, goes to the number that was the largest, to the first
    one (row by row) if several were. NaN is passed on. The padding is :math:`-\infty`, which is
    never the largest.

    References: Yamaguchi, Sakamoto, Akabane and Fujimoto, *A neural network for
    speaker-independent isolated word recognition*, ICSLP (1990); Weng, Ahuja and Huang,
    *Cresceptron: a self-organizing neural network which grows adaptively*, IJCNN (1992).

    Left out: ``return_indices``.

    Args:
        input: Images, (batch, channels, height, width), or a single one without the batch.
        kernel_size: Side of the window, or (height, width).
        stride: Pixels from one window to the next; the window's size if it is not given.
        padding: Pixels added at either end, at most half the window.
        dilation: Pixels from one element of the window to the next.
        ceil_mode: Let the last window reach beyond the end: see :func:`output_size`.

    Returns:
        The images of maxima.

    Raises:
        ValueError: If the input is no image, an option is out of its range, or the window is
            larger than the image.
    """
    input, batched = _batched(input)
    kernel, padding, dilation = (
        _pair(kernel_size, "kernel_size"),
        _pair(padding, "padding"),
        _pair(dilation, "dilation"),
    )
    stride = _pair(stride, "stride") if stride or stride == 0 else kernel  # None or ()
    size, edges = _windows(input.shape[2:], kernel, stride, padding, dilation, ceil_mode)
    if any(edges):
        input = pad(input, edges, value=-math.inf)
    places = [(..., *place) for place in _places(size, kernel, stride, dilation)]
    output = MaxPooling.apply(input, places)
    return output if batched else output[0]


class MaxPooling(torch.autograd.Function):
    """The maximum of several slices of an image, and its gradient: see :func:`max_pool2d`."""

    @staticmethod
    @checked
    def forward(
        ctx: Any, x: Shaped[Tensor, "..."], places: list[tuple]
    ) -> Shaped[Tensor, "..."]:
        """The largest of ``x[place]`` over all places, entry by entry."""
        y = reduce(torch.maximum, (x[place] for place in places))
        ctx.save_for_backward(x, y)
        ctx.places = places
        return y.clone() if len(places) == 1 else y  # never a view of the input

    @staticmethod
    def backward(ctx: Any, g: Shaped[Tensor, "..."]) -> tuple[Shaped[Tensor, "..."], None]:
        """What is left of the gradient goes to each slice where it equals the maximum."""
        x, y = ctx.saved_tensors
        dx = torch.zeros_like(x)
        for place in ctx.places:
            share = g * (x[place] == y)
            dx[place].add_(share)
            g = g - share
        if y.sum().isnan():  # NaN equals nothing: the last in a window takes what is left
            for place in reversed(ctx.places):
                share = g * x[place].isnan()
                dx[place].add_(share)
                g = g - share
        return dx, None


@checked
def avg_pool2d(
    input: Float[Tensor, "*batch channels height width"],
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Float[Tensor, "*batch channels out_height out_width"]:
    r"""The mean of each window.

    .. math:: y_{c h w} = \frac{1}{k^2} \sum_{i, j} x_{c,\; s h + i,\; s w + j}

    It is a convolution whose weights are all equal, taken along the columns and then along the
    rows.

    Reference: LeCun, Bottou, Bengio and Haffner, *Gradient-based learning applied to document
    recognition*, Proceedings of the IEEE 86 (1998).

    Args:
        input: Images, (batch, channels, height, width), or a single one without the batch.
        kernel_size: Side of the window, or (height, width).
        stride: Pixels from one window to the next; the window's size if it is not given.
        padding: Zeros added at either end, at most half the window.
        ceil_mode: Let the last window reach beyond the end: see :func:`output_size`. What is
            beyond is not counted.
        count_include_pad: Count the zeros of the padding.
        divisor_override: Divide by this instead of by the window's count.

    Returns:
        The images of means.

    Raises:
        ValueError: If the input is no image, an option is out of its range, or the window is
            larger than the image.
    """
    output, batched = _batched(input)
    kernel, padding = _pair(kernel_size, "kernel_size"), _pair(padding, "padding")
    stride = _pair(stride, "stride") if stride or stride == 0 else kernel  # None or ()
    if divisor_override is not None and divisor_override < 1:
        raise ValueError(
            f"divisor_override must be at least 1, got {divisor_override}: leave it out to get "
            "the mean"
        )
    size, edges = _windows(output.shape[2:], kernel, stride, padding, (1, 1), ceil_mode)
    output = pad(output, edges) if any(edges) else output
    for axis in (0, 1):
        output = output.unfold(2 + axis, kernel[axis], stride[axis]).sum(-1)
        if divisor_override is None:
            pixels, p = input.shape[axis - 2], padding[axis]
            low, high = (-p, pixels + p) if count_include_pad else (0, pixels)
            start = stride[axis] * torch.arange(size[axis], device=output.device) - p
            count = (start + kernel[axis]).clamp(max=high) - start.clamp(min=low)
            output = output / (count[:, None] if axis == 0 else count).to(output.dtype)
    if divisor_override is not None:
        output = output / divisor_override
    return output if batched else output[0]


@checked
def adaptive_avg_pool2d(
    input: Float[Tensor, "*batch channels height width"],
    output_size: int | Sequence[int | None],
) -> Float[Tensor, "*batch channels out_height out_width"]:
    r"""Means over as many windows as the output is to have places, whatever the size of the
    image.

    Window :math:`i` of :math:`m` along a side of :math:`n` pixels reaches from pixel
    :math:`\lfloor i\,n / m \rfloor` to just before :math:`\lceil (i + 1)\,n / m \rceil`. One
    window (``output_size=1``) is *global average pooling*.

    Reference: Lin, Chen and Yan, *Network in network*, arXiv:1312.4400 (2013).

    Args:
        input: Images, (batch, channels, height, width), or a single one without the batch.
        output_size: Windows along each side, or (down, across); ``None`` leaves a side as it
            is.

    Returns:
        The images of means.

    Raises:
        ValueError: If the input is no image, or a size is less than one.
    """
    output, batched = _batched(input)
    sizes = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    if len(sizes) != 2 or any(size is not None and size < 1 for size in sizes):
        raise ValueError(
            f"output_size must be one or two numbers, at least 1 or None, got {output_size}"
        )
    for axis, size in enumerate(sizes, 2):
        if size is not None:
            n = output.shape[axis]
            bounds = [(i * n // size, -(-(i + 1) * n // size)) for i in range(size)]
            output = torch.stack(
                [output.narrow(axis, a, b - a).mean(axis) for a, b in bounds], axis
            )
    return output if batched else output[0]


def _windows(shape, kernel, stride, padding, dilation, ceil_mode):
    """How many windows fit, and the edges (left, right, top, bottom) that they reach over."""
    if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        raise ValueError(
            f"padding must be at most half the window, got padding {padding} for a window of "
            f"{kernel}: further out a window would see nothing but padding"
        )
    size, edges = [], []
    for n, k, s, p, d in zip(shape, kernel, stride, padding, dilation, strict=True):
        size.append(output_size(n, k, s, p, d, ceil_mode))
        edges = [p, max(p, (size[-1] - 1) * s + d * (k - 1) + 1 - n - p), *edges]
    return size, edges


def _edges(shape, kernel, stride, padding, dilation):
    """The zeros to add for a convolution: (left, right, top, bottom)."""
    if padding == "same":
        if stride != (1, 1):
            raise ValueError(
                "padding='same' makes the output as large as the input: that needs stride 1, "
                f"got {stride}"
            )
        ends = [divmod(d * (k - 1), 2) for k, d in zip(kernel, dilation, strict=True)]
        before, after = [half for half, _ in ends], [half + odd for half, odd in ends]
    elif isinstance(padding, str) and padding != "valid":
        raise ValueError(
            f"padding must be one number or two, 'same' or 'valid', got {padding!r}"
        )
    else:
        before = after = (0, 0) if padding == "valid" else _pair(padding, "padding")
    for options in zip(shape, kernel, stride, after, dilation, strict=True):
        output_size(*options)  # says what is wrong with them
    return before[1], after[1], before[0], after[0]


def _pair(value, name):
    """(down, across) from one number, in brackets or not, or two."""
    pair = (value,) if isinstance(value, int) else tuple(value)
    pair *= 2 if len(pair) == 1 else 1
    if len(pair) != 2:
        raise ValueError(f"{name} must be one number or two, (down, across), got {value}")
    return pair


def _batched(input):
    """The images with their batch dimension, and whether they had one."""
    if input.dim() not in (3, 4):
        raise ValueError(
            "expected images of shape (batch, channels, height, width) or one of (channels, "
            f"height, width), got {tuple(input.shape)}: a batch of grey images gets its "
            "channel by images.unsqueeze(1)"
        )
    return (input, True) if input.dim() == 4 else (input[None], False)


def _check_groups(groups, in_channels, out_channels):
    """Refuse groups that channels cannot be split into."""
    if groups < 1 or in_channels % groups or out_channels % groups:
        raise ValueError(
            f"groups must divide the input channels and the output channels, got {groups} "
            f"groups for {in_channels} and {out_channels} channels"
        )


class Conv2d(nn.Module):
    r""":func:`conv2d` with weights and biases that are learned.

    Interchangeable with :class:`torch.nn.Conv2d`: the same parameters, and for the same seed
    the same initial numbers, drawn from :math:`\mathcal U(-1/\sqrt n, 1/\sqrt n)`, where
    :math:`n` is the number of inputs of one output.

    Left out: ``padding_mode``; the padding is zeros.

    Args:
        in_channels: Channels of the images.
        out_channels: Kernels, and so channels of the output.
        kernel_size: Side of a kernel, or (height, width).
        stride: Pixels from one place to the next.
        padding: Zeros added at either end, or ``"same"`` or ``"valid"``.
        dilation: Pixels from one element of a kernel to the next.
        groups: Into how many groups the channels are split.
        bias: Whether to add a bias.
        device: Where the parameters live.
        dtype: Their float type.

    Attributes:
        weight: Of shape (out_channels, in_channels / groups, kernel height, kernel width).
        bias: Of shape (out_channels,), or ``None``.

    Raises:
        ValueError: If a size is less than one, or ``groups`` does not divide the channels.
    """

    @accepts(padding_mode="zeros")
    @checked
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        kernel = _pair(kernel_size, "kernel_size")
        if min(in_channels, out_channels, *kernel) < 1:
            raise ValueError(
                f"channels and kernel_size must be at least 1, got {in_channels}, "
                f"{out_channels} and {kernel_size}"
            )
        _check_groups(groups, in_channels, out_channels)
        self.in_channels, self.out_channels, self.kernel_size, self.groups = (
            in_channels,
            out_channels,
            kernel,
            groups,
        )
        self.stride, self.dilation = _pair(stride, "stride"), _pair(dilation, "dilation")
        self.padding = padding if isinstance(padding, str) else _pair(padding, "padding")
        self.weight = nn.Parameter(
            torch.empty(
                out_channels, in_channels // groups, *kernel, device=device, dtype=dtype
            )
        )
        self.bias = (
            nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype))
            if bias
            else None
        )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the initial weights and biases anew."""
        kaiming_uniform_(self.weight, a=math.sqrt(5))  # this slope makes the bound 1 / √n
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            self.bias.uniform_(-bound, bound)

    @checked
    def forward(
        self, input: Float[Tensor, "*batch in_channels height width"]
    ) -> Float[Tensor, "*batch out_channels out_height out_width"]:
        """:func:`conv2d` of ``input``."""
        check_alike(self, input, self.weight)
        return conv2d(
            input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )

    def extra_repr(self) -> str:
        """The options, for ``print(layer)``."""
        shown = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        shown += f", stride={self.stride}"
        usual = {"padding": (0, 0), "dilation": (1, 1), "groups": 1}
        shown += "".join(
            f", {name}={getattr(self, name)}"
            for name in usual
            if getattr(self, name) != usual[name]
        )
        return shown if self.bias is not None else f"{shown}, bias=False"


class MaxPool2d(nn.Module):
    """:func:`max_pool2d` as a module, without ``return_indices``.

    Args:
        kernel_size: Side of the window, or (height, width).
        stride: Pixels from one window to the next; the window's size if it is not given.
        padding: Pixels added at either end.
        dilation: Pixels from one element of the window to the next.
        ceil_mode: Let the last window reach beyond the end.
    """

    @accepts(return_indices=False)
    @checked
    def __init__(
        self,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        *,
        ceil_mode: bool = False,
    ):
        super().__init__()
        self.kernel_size, self.stride = kernel_size, kernel_size if stride is None else stride
        self.padding, self.dilation, self.ceil_mode = padding, dilation, ceil_mode

    def forward(
        self, input: Float[Tensor, "*batch channels height width"]
    ) -> Float[Tensor, "*batch channels out_height out_width"]:
        """:func:`max_pool2d` of ``input``."""
        return max_pool2d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode
        )

    def extra_repr(self) -> str:
        """The options, for ``print(module)``."""
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)


class AvgPool2d(nn.Module):
    """:func:`avg_pool2d` as a module.

    Args:
        kernel_size: Side of the window, or (height, width).
        stride: Pixels from one window to the next; the window's size if it is not given.
        padding: Zeros added at either end.
        ceil_mode: Let the last window reach beyond the end.
        count_include_pad: Count the zeros of the padding.
        divisor_override: Divide by this instead of by the window's count.
    """

    @checked
    def __init__(
        self,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ):
        super().__init__()
        self.kernel_size, self.stride = kernel_size, kernel_size if stride is None else stride
        self.padding, self.ceil_mode, self.count_include_pad = (
            padding,
            ceil_mode,
            count_include_pad,
        )
        self.divisor_override = divisor_override

    def forward(
        self, input: Float[Tensor, "*batch channels height width"]
    ) -> Float[Tensor, "*batch channels out_height out_width"]:
        """:func:`avg_pool2d` of ``input``."""
        options = self.ceil_mode, self.count_include_pad, self.divisor_override
        return avg_pool2d(input, self.kernel_size, self.stride, self.padding, *options)

    def extra_repr(self) -> str:
        """The options, for ``print(module)``."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class AdaptiveAvgPool2d(nn.Module):
    """:func:`adaptive_avg_pool2d` as a module.

    Args:
        output_size: Windows along each side, or (down, across); ``None`` leaves a side as it
            is.
    """

    @checked
    def __init__(self, output_size: int | Sequence[int | None]):
        super().__init__()
        self.output_size = output_size

    def forward(
        self, input: Float[Tensor, "*batch channels height width"]
    ) -> Float[Tensor, "*batch channels out_height out_width"]:
        """:func:`adaptive_avg_pool2d` of ``input``."""
        return adaptive_avg_pool2d(input, self.output_size)

    def extra_repr(self) -> str:
        """The size, for ``print(module)``."""
        return f"output_size={self.output_size}"


class Flatten(nn.Module):
    """Several dimensions in one, row by row: from feature maps to the vectors that a linear
    layer takes.

    Args:
        start_dim: The first of them.
        end_dim: The last of them.
    """

    @checked
    def __init__(self, start_dim: int = 1, end_dim: int = -1):
        super().__init__()
        self.start_dim, self.end_dim = start_dim, end_dim

    @checked
    def forward(self, input: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """``input`` with these dimensions as one."""
        start, end, n = self.start_dim, self.end_dim, max(input.dim(), 1)
        if not {start, end} <= {*range(-n, n)} or start % n > end % n:
            raise ValueError(
                f"shape {tuple(input.shape)} has no dimensions from start_dim={start} to "
                f"end_dim={end}: count them from 0, or from the end by -1"
            )
        return input.flatten(start, end)

    def extra_repr(self) -> str:
        """The dimensions, for ``print(module)``."""
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class LeNet(nn.Module):
    """Two convolutions, each with a pooling after it, and three linear layers: LeNet-5 with
    today's parts.

    The paper's network has tanh units, a learned average pooling, feature maps that are only
    partly connected, and radial units at the end; here stand ReLU, maxima, full connections,
    and logits for the softmax.

    =====================================  ==============  ==========
    layer                                  output          parameters
    =====================================  ==============  ==========
    6 kernels of 5 × 5, padding 2, ReLU    6 × 28 × 28            156
    maximum of 2 × 2                       6 × 14 × 14
    16 kernels of 5 × 5, ReLU              16 × 10 × 10         2,416
    maximum of 2 × 2                       16 × 5 × 5
    linear, ReLU                           120                 48,120
    linear, ReLU                           84                  10,164
    linear                                 10                     850
    =====================================  ==============  ==========

    Reference: LeCun, Bottou, Bengio and Haffner, *Gradient-based learning applied to document
    recognition*, Proceedings of the IEEE 86 (1998).

    Args:
        classes: How many classes to tell apart.

    Attributes:
        features: The convolutional part, from images to 16 feature maps of 5 × 5.
        head: The fully connected part, from feature maps to one logit for each class.
    """

    @checked
    def __init__(self, classes: int = 10):
        super().__init__()
        self.features = Sequential(
            *(Conv2d(1, 6, kernel_size=5, padding=2), ReLU(), MaxPool2d(2)),
            *(Conv2d(6, 16, kernel_size=5), ReLU(), MaxPool2d(2)),
        )
        self.head = Sequential(Flatten(), MLP([16 * 5 * 5, 120, 84, classes], activation=relu))

    @checked
    def forward(
        self, input: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """One logit for each class.

        Args:
            input: Grey images of 28 by 28 pixels, (batch, 1, 28, 28).

        Raises:
            ValueError: If the images have another shape.
        """
        if input.shape[1:] != (1, 28, 28):
            raise ValueError(
                f"LeNet takes images of shape (batch, 1, 28, 28), got {tuple(input.shape)}: "
                "for another size, its head would need another number of inputs"
            )
        return self.head(self.features(input))
