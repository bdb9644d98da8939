"""Episodes side by side: a row of `act` is an episode of its own."""

import pytest
import test_dreamer
import test_drqv2
import torch


@pytest.mark.parametrize("kind", ["drqv2", "dreamerv3"])
@pytest.mark.parametrize("eval_mode", [False, True])
def test_no_row_depends_on_another_rows_observation(kind: str, eval_mode: bool):
    taken = []
    for other in (0, 255):
        if kind == "drqv2":
            agent = test_drqv2.cloned(test_drqv2.agent(**test_drqv2.ALL))
            seen = test_drqv2.batch(0, 3).obs
        else:
            agent, seen = test_dreamer.make_agent(), test_dreamer.images(3)
        agent.begin_episode(eval_mode)
        for image in seen:
            obs = torch.stack([image, torch.full_like(image, other)])
            taken.append(agent.act(obs, 0, eval_mode))
    first, second = torch.stack(taken[:3]), torch.stack(taken[3:])
    assert torch.equal(first[:, 0], second[:, 0])
    assert not torch.equal(first[:, 1], second[:, 1])
