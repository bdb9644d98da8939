"""An agent's networks as one flat dictionary of weights (for safetensors), and back."""

from collections.abc import Mapping

from torch import Tensor, nn

from agents.api import StateMismatch


def flat_weights(networks: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Every weight under its network's name and its own, `critic.Q1.output.bias` say."""
    return {
        f"{network}.{name}": value.detach().contiguous()
        for network, module in networks.items()
        for name, value in module.state_dict().items()
    }


def load_flat_weights(networks: Mapping[str, nn.Module], weights: Mapping[str, Tensor]) -> None:
    """Takes over what `flat_weights` returned.

    Raises:
        StateMismatch: the weights belong to networks of other sizes; nothing was changed.
    """
    for name, value in flat_weights(networks).items():
        saved = tuple(weights[name].shape) if name in weights else "missing"
        if saved != tuple(value.shape):
            raise StateMismatch(
                f"saved agent does not fit: {name} is {saved}, this configuration needs "
                f"{tuple(value.shape)}; use the configuration it was trained with"
            )
    for network, module in networks.items():
        prefix = f"{network}."
        module.load_state_dict({name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)})
