"""NCSN++'s U-Net for video, with factorised space-time attention (Video Diffusion Models, Ho et al. 2022).

Convolutions, normalisation and attention over space see one frame; after each attention over space comes one over time,
of every place's frames, with rotary positions. With an image network's settings it takes that network's weights, see
`video.inflate`.
"""

import dataclasses

from flax import nnx

from score_sde.models.ncsnpp import NCSNpp, NCSNppModule
from score_sde.models.unet_blocks import UNet
from score_sde.models.video import Frames, check_video


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoUNet(UNet):
    """Settings of the network, those of `UNet`. Frames meet at `attention_resolutions`, and in the middle."""

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises UserError unless `shape` is (frames, height, width, channels) that the down-sampling divides."""
        check_video("video_unet", shape)
        self.check_image_shape("video_unet", shape[1:])

    def build(self, shape: tuple[int, ...], rngs: nnx.Rngs) -> Frames:
        """The module for samples of `shape`."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Frames(NCSNppModule(NCSNpp(**own, frames=shape[0]), shape[1:], rngs))
