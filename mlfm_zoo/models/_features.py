"""The features that a network returns, taken on one walk through its stages."""

from typing import Any, List, Optional, Tuple, Union

import torch
import torch.nn as nn

from .._timm import FeatureGetterNet, feature_take_indices

__all__ = ['FeatureNet', 'StagedNetwork']


class StagedNetwork(nn.Module):
    """Base of networks that `_forward_stages` runs; it goes before the trunk's class."""

    def _forward_stages(self, x: torch.Tensor, indices: List[int], end: int) -> Tuple[torch.Tensor, List[torch.Tensor]]:
        """Run the stem and the stages.

        Args:
            x: Image batch (N, in_chans, H, W).
            indices: Features to keep, 0 the stem's, i the one of stage i, counted from 1.
            end: Stage after which to stop, 0 for the stem.

        Returns:
            The last feature, and the kept features in order.
        """
        raise NotImplementedError

    def _feature_stages(self) -> List[int]:
        """The stages that have a feature in `feature_info`, counted as in `_forward_stages`."""
        return [0, 1, 2, 3, 4]

    def _forward_end(self, x: torch.Tensor) -> torch.Tensor:
        """What `forward_features` does after the last stage."""
        return x

    def _ends_with_norm(self) -> bool:
        """Whether that is the norm which `norm=True` of `forward_intermediates` asks for."""
        return False

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the deepest feature (N, num_features, H', W') of an image batch (N, in_chans, H, W)."""
        x, _ = self._forward_stages(x, [], self._feature_stages()[-1])
        return self._forward_end(x)

    def forward_intermediates(
            self,
            x: torch.Tensor,
            indices: Optional[Union[int, List[int]]] = None,
            norm: bool = False,
            stop_early: bool = False,
            output_fmt: str = 'NCHW',
            intermediates_only: bool = False,
    ) -> Union[List[torch.Tensor], Tuple[torch.Tensor, List[torch.Tensor]]]:
        """Compute the features of `feature_info`.

        Args:
            x: Image batch (N, in_chans, H, W).
            indices: Features to return, the last so many if a number, all if None.
            norm: Whether to apply the last norm to the last feature, in networks that end with one.
            stop_early: Whether to stop at the last of them.
            output_fmt: 'NCHW'.
            intermediates_only: Whether to return nothing else.

        Returns:
            The features, after the last one computed unless `intermediates_only`.

        Raises:
            ValueError: `output_fmt` is another layout.
        """
        return self._take_features(
            x, self._feature_stages(), norm and self._ends_with_norm(), indices, stop_early, output_fmt,
            intermediates_only)

    def _take_features(
            self,
            x: torch.Tensor,
            stages: List[int],
            end_too: bool,
            indices: Optional[Union[int, List[int]]],
            stop_early: bool,
            output_fmt: str,
            intermediates_only: bool,
    ) -> Union[List[torch.Tensor], Tuple[torch.Tensor, List[torch.Tensor]]]:
        """Take features after `stages`, the last one after the network's end if `end_too`."""
        if output_fmt != 'NCHW':
            raise ValueError(f"output_fmt is '{output_fmt}', expected 'NCHW', the only layout of these features.")
        take_indices, max_index = feature_take_indices(len(stages), indices)
        taken = [stages[i] for i in take_indices]
        end = stages[max_index] if stop_early else stages[-1]
        x, features = self._forward_stages(x, taken, end)
        if end == stages[-1] and (end_too or not intermediates_only):
            x = self._forward_end(x)
            if end_too and end in taken:
                features[-1] = x
        if intermediates_only:
            return features
        return x, features


class FeatureNet(FeatureGetterNet):
    """timm's extractor for models with `forward_intermediates`, with two additions.

    They are a switch for gradient checkpointing, and a return type, which TorchScript needs.
    """

    def forward(self, x: torch.Tensor) -> List[torch.Tensor]:
        network: Any = self.model
        features = network.forward_intermediates(
            x, indices=self.out_indices, norm=self.norm, output_fmt=self.output_fmt, intermediates_only=True)
        assert isinstance(features, list)  # for TorchScript; with `intermediates_only` nothing else is returned
        return features

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        network: Any = self.model
        network.set_grad_checkpointing(enable)
