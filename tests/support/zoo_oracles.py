"""The forward passes of the literature's small networks, from a state dict alone.

Written from the papers and the checkpoints' names, in plain functions; nothing of the project is
used.
"""

from torch.nn.functional import conv2d


class Oracle:
    """Named weights and the few operations that the networks are made of."""

    def __init__(self, weights, *, training=False):
        self.weights, self.training = weights, training

    def has(self, name):
        return f"{name}.weight" in self.weights

    def blocks(self, prefix):
        """Numbers of the blocks under a prefix, in order."""
        start = len(prefix) + 1
        names = {key[start:].split(".")[0] for key in self.weights if key.startswith(prefix + ".")}
        return range(len(names))

    def conv(self, maps, name, *, stride=1):
        weight = self.weights[f"{name}.weight"]
        return conv2d(
            maps,
            weight,
            self.weights.get(f"{name}.bias"),
            stride=stride,
            padding=weight.shape[-1] // 2,
            groups=maps.shape[1] // weight.shape[1],
        )

    def norm(self, maps, name):
        part = {key: self.weights[f"{name}.{key}"] for key in ("weight", "bias")}
        if self.training:
            mean = maps.mean(dim=(0, 2, 3))
            variance = ((maps - mean[:, None, None]) ** 2).mean(dim=(0, 2, 3))
        else:
            mean, variance = (self.weights[f"{name}.running_{key}"] for key in ("mean", "var"))
        scale = part["weight"] / (variance + 1e-5) ** 0.5
        shift = part["bias"] - mean * scale
        return maps * scale[:, None, None] + shift[:, None, None]

    def conv_norm(self, maps, conv, norm, *, stride=1):
        return self.norm(self.conv(maps, conv, stride=stride), norm)

    def logits(self, maps, head):
        pooled = maps.sum(dim=(2, 3)) / (maps.shape[2] * maps.shape[3])
        return pooled @ self.weights[f"{head}.weight"].T + self.weights[f"{head}.bias"]


def positive(maps):
    return maps * (maps > 0)


def joined(*parts):
    """Channels of the first, then of the second."""
    total = sum(part.shape[1] for part in parts)
    out = parts[0].new_zeros(len(parts[0]), total, *parts[0].shape[2:])
    start = 0
    for part in parts:
        out[:, start : start + part.shape[1]] = part
        start += part.shape[1]
    return out


def shuffled(maps, groups):
    size = maps.shape[1] // groups
    order = [group * size + place for place in range(size) for group in range(groups)]
    return maps[:, order]


def largest_of_four(maps):
    height, width = (size // 2 * 2 for size in maps.shape[2:])
    corners = [maps[:, :, i:height:2, j:width:2] for i in (0, 1) for j in (0, 1)]
    out = corners[0]
    for corner in corners[1:]:
        out = out.maximum(corner)
    return out


def ninth_of_neighbours(maps):
    """3x3 sums at every second pixel, outside is 0, divided by nine everywhere."""
    batch, channels, height, width = maps.shape
    framed = maps.new_zeros(batch, channels, height + 2, width + 2)
    framed[:, :, 1:-1, 1:-1] = maps
    windows = [
        framed[:, :, i : i + height : 2, j : j + width : 2] for i in range(3) for j in range(3)
    ]
    return sum(windows) / 9


def projection_resnet(images, o):
    maps = positive(o.conv_norm(images, "conv1", "bn1"))
    for stage in (1, 2, 3):
        for block in o.blocks(f"layer{stage}"):
            at = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            out = positive(o.conv_norm(maps, f"{at}.conv1", f"{at}.bn1", stride=stride))
            out = o.conv_norm(out, f"{at}.conv2", f"{at}.bn2")
            down = f"{at}.downsample"
            if o.has(f"{down}.0"):
                maps = o.conv_norm(maps, f"{down}.0", f"{down}.1", stride=stride)
            maps = positive(out + maps)
    return o.logits(maps, "fc")


def four_stage_resnet(images, o):
    maps = positive(o.conv_norm(images, "conv1", "bn1"))
    for stage in (1, 2, 3, 4):
        for block in o.blocks(f"layer{stage}"):
            at = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            is_deep = o.has(f"{at}.conv3")
            strides = (1, stride, 1) if is_deep else (stride, 1)
            out = maps
            for number, step in enumerate(strides, start=1):
                out = o.conv_norm(out, f"{at}.conv{number}", f"{at}.bn{number}", stride=step)
                out = positive(out) if number < len(strides) else out
            if o.has(f"{at}.shortcut.0"):
                maps = o.conv_norm(maps, f"{at}.shortcut.0", f"{at}.shortcut.1", stride=stride)
            maps = positive(out + maps)
    return o.logits(maps, "linear")


def wide_resnet(images, o):
    maps = o.conv(images, "conv1")
    for stage in (1, 2, 3):
        for block in o.blocks(f"block{stage}.layer"):
            at = f"block{stage}.layer.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            active = positive(o.norm(maps, f"{at}.bn1"))
            out = positive(o.norm(o.conv(active, f"{at}.conv1", stride=stride), f"{at}.bn2"))
            if o.has(f"{at}.convShortcut"):
                maps = o.conv(active, f"{at}.convShortcut", stride=stride)
            maps = o.conv(out, f"{at}.conv2") + maps
    return o.logits(positive(o.norm(maps, "bn1")), "fc")


def vgg(images, o):
    maps = images
    for block in range(5):
        for place in (0, 3, 6):
            at = f"block{block}"
            if o.has(f"{at}.{place}"):
                maps = positive(o.conv_norm(maps, f"{at}.{place}", f"{at}.{place + 1}"))
        if block < 3 or (block == 3 and images.shape[2] == 64):
            maps = largest_of_four(maps)
    return o.logits(maps, "classifier")


def shufflenet_v1(images, o):
    maps = positive(o.conv_norm(images, "conv1", "bn1"))
    for stage in (1, 2, 3):
        for block in o.blocks(f"layer{stage}"):
            at = f"layer{stage}.{block}"
            out = positive(o.conv_norm(maps, f"{at}.conv1", f"{at}.bn1"))
            out = out if stage == 1 and block == 0 else shuffled(out, 3)
            stride = 2 if block == 0 else 1
            out = positive(o.conv_norm(out, f"{at}.conv2", f"{at}.bn2", stride=stride))
            out = o.conv_norm(out, f"{at}.conv3", f"{at}.bn3")
            maps = joined(out, ninth_of_neighbours(maps)) if block == 0 else out + maps
            maps = positive(maps)
    return o.logits(maps, "linear")


def shufflenet_v2(images, o):
    maps = positive(o.conv_norm(images, "conv1", "bn1"))
    for stage in (1, 2, 3):
        for block in o.blocks(f"layer{stage}"):
            at = f"layer{stage}.{block}"
            if block == 0:
                left = o.conv_norm(maps, f"{at}.conv1", f"{at}.bn1", stride=2)
                left = positive(o.conv_norm(left, f"{at}.conv2", f"{at}.bn2"))
                right = positive(o.conv_norm(maps, f"{at}.conv3", f"{at}.bn3"))
                right = o.conv_norm(right, f"{at}.conv4", f"{at}.bn4", stride=2)
                right = positive(o.conv_norm(right, f"{at}.conv5", f"{at}.bn5"))
            else:
                half = maps.shape[1] // 2
                left, right = maps[:, :half], maps[:, half:]
                right = positive(o.conv_norm(right, f"{at}.conv1", f"{at}.bn1"))
                right = o.conv_norm(right, f"{at}.conv2", f"{at}.bn2")
                right = positive(o.conv_norm(right, f"{at}.conv3", f"{at}.bn3"))
            maps = shuffled(joined(left, right), 2)
    return o.logits(positive(o.conv_norm(maps, "conv2", "bn2")), "linear")


def mobilenet_v2(images, o):
    maps = positive(o.conv_norm(images, "conv1.0", "conv1.1", stride=2))
    for stage, first_stride in enumerate((1, 1, 2, 2, 1, 2, 1)):
        for block in o.blocks(f"blocks.{stage}"):
            at = f"blocks.{stage}.{block}.conv"
            stride = first_stride if block == 0 else 1
            out = positive(o.conv_norm(maps, f"{at}.0", f"{at}.1"))
            out = positive(o.conv_norm(out, f"{at}.3", f"{at}.4", stride=stride))
            out = o.conv_norm(out, f"{at}.6", f"{at}.7")
            maps = out + maps if out.shape == maps.shape else out
    return o.logits(positive(o.conv_norm(maps, "conv2.0", "conv2.1")), "classifier.0")


def mobilenet_v1(images, o):
    maps = positive(o.conv_norm(images, "model.0.0", "model.0.1", stride=2))
    for block in range(1, 14):
        at = f"model.{block}"
        stride = 2 if block in (2, 4, 6, 12) else 1
        maps = positive(o.conv_norm(maps, f"{at}.0", f"{at}.1", stride=stride))
        maps = positive(o.conv_norm(maps, f"{at}.3", f"{at}.4"))
    return o.logits(maps, "fc")
