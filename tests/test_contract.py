"""Rollouts that are stepped, copied and widened (`world_model/api.py`)."""

import threading

import pytest
import torch

from tests.tiny_world import LEARNER, TRANSFORMER, make_clips, make_model
from world_model import imagine
from world_model.ivideogpt.config import Rhythm
from world_model.ivideogpt.learner import WorldModelLearner


def given(rows=3, horizon=4):
    clips = make_clips(batch=rows, frames=2 + horizon)
    return clips.frames[:, :2], clips.actions[:, :horizon]


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_steps_are_the_dream():
    model, (context, actions) = make_model(), given()
    dream = model.imagine(context, actions, 4, generator=torch.Generator().manual_seed(1))
    rollout = model.start(context, generator=torch.Generator().manual_seed(1), horizon=4)
    steps = [rollout.step(action) for action in actions.unbind(1)]
    assert torch.equal(rollout.frames[:, :2], context)
    assert torch.equal(rollout.frames[:, 2:], dream.frames)
    for t, step in enumerate(steps):
        assert torch.equal(step.frame, dream.frames[:, t])
        assert torch.equal(step.tokens, dream.tokens[:, t])
        assert torch.equal(step.heads["reward"], dream.rewards[:, t])


def test_heads_asked_for_at_once_are_those_told_later():
    """Then the last token is read alone, not beside the next slot; only rounding may differ."""
    model, (context, actions) = make_model(), given()
    dream = model.imagine(context, actions, 4, temperature=0)
    rollout = model.start(context, temperature=0)
    rewards = [rollout.step(action).heads["reward"] for action in actions.unbind(1)]
    close(torch.stack(rewards, 1), dream.rewards)
    close(rollout.frames[:, 2:], dream.frames)


def test_nothing_is_decoded_that_nobody_looks_at(monkeypatch):
    model, (context, actions) = make_model(), given()
    whole = model.imagine(context, actions, 4, temperature=0)
    rollout, seen = model.start(context, temperature=0), []
    decode = model.tokenizer.decode_future
    monkeypatch.setattr(model.tokenizer, "decode_future", lambda *given: seen.append(1) or decode(*given))
    steps = [rollout.step(action) for action in actions.unbind(1)]
    close(steps[-1].heads["reward"], whole.rewards[:, -1])
    assert not seen
    close(steps[-1].frame, whole.frames[:, -1])
    assert len(seen) == 1


@pytest.mark.parametrize("begun", [0, 2])
def test_candidates_equal_dreams_of_their_own(begun):
    """From the start, and from the middle of a dream."""
    model, rows, n = make_model(), 2, 5
    context, past = given(rows, 3)
    futures = torch.randn(rows * n, 3, 3, generator=torch.Generator().manual_seed(3))
    rollout = model.start(context, temperature=0)
    for action in past[:, :begun].unbind(1):
        rollout.step(action)
    candidates = rollout.expand(n)
    steps = [candidates.step(action) for action in futures.unbind(1)]

    actions = torch.cat([past[:, :begun].repeat_interleave(n, 0), futures], dim=1)
    alone = model.imagine(context.repeat_interleave(n, 0), actions, begun + 3, temperature=0)
    assert torch.equal(torch.stack([step.tokens for step in steps], 1), alone.tokens[:, begun:])
    close(candidates.frames[:, 2:], alone.frames)
    close(torch.stack([step.heads["reward"] for step in steps], 1), alone.rewards[:, begun:])
    twice = rollout.expand(2).expand(3)
    close(
        twice.step(futures[:1, 0].expand(rows * 6, -1)).frame,
        rollout.fork().expand(6).step(futures[:1, 0].expand(rows * 6, -1)).frame,
    )
    close(rollout.step(past[:, begun]).frame, model.imagine(context, past, begun + 1, temperature=0).frames[:, -1])


def test_both_branches_of_a_fork_equal_dreams_from_the_start():
    model, (context, actions) = make_model(), given()
    rollout = model.start(context, temperature=0)
    for action in actions[:, :2].unbind(1):
        rollout.step(action)
    other = rollout.fork()
    for action in actions[:, 2:].unbind(1):
        rollout.step(action)
        other.step(-action)
    close(rollout.frames[:, 2:], model.imagine(context, actions, 4, temperature=0).frames)
    turned = torch.cat([actions[:, :2], -actions[:, 2:]], dim=1)
    close(other.frames[:, 2:], model.imagine(context, turned, 4, temperature=0).frames)
    assert not torch.allclose(other.frames, rollout.frames)


def test_a_fork_may_have_another_temperature():
    model, (context, actions) = make_model(), given()
    drawn = model.start(context, temperature=2.0, generator=torch.Generator().manual_seed(1))
    drawn.step(actions[:, 0])

    def goes_on(temperature):
        return drawn.fork(temperature).step(actions[:, 1]).tokens

    assert torch.equal(goes_on(0.0), goes_on(0.0)), "greedy"
    assert not torch.equal(goes_on(None), goes_on(None)), "as it was, and both draw from one generator"
    assert torch.equal(drawn.fork(0.0).fork().step(actions[:, 1]).tokens, goes_on(0.0))


def test_a_dream_longer_than_the_positions_begins_again_from_its_own_frames():
    model, (context, actions) = make_model(), given(horizon=7)
    layout = model.layout
    model.transformer.config = type(TRANSFORMER)(**(vars(TRANSFORMER) | {"max_position_embeddings": layout.length(5)}))
    rollout = model.start(context, temperature=0)  # room for three frames
    left = [rollout.steps_left]
    for action in actions.unbind(1):
        rollout.step(action)
        left.append(rollout.steps_left)
    assert left == [3, 2, 1, 0, 2, 1, 0, 2]
    assert rollout.anchors == [3, 6]
    first = model.imagine(context, actions[:, :3], 3, temperature=0).frames
    again = model.imagine(first[:, -2:], actions[:, 3:6], 3, temperature=0).frames
    close(rollout.frames[:, 2:8], torch.cat([first, again], dim=1))
    dream = model.imagine(context, actions, 7, temperature=0)
    close(dream.frames, rollout.frames[:, 2:])
    assert dream.rewards.shape == (3, 7)


def test_candidates_of_long_dreams():
    """Widened before and after it began again, when it was exactly full, and copied when wide."""
    model, (context, actions) = make_model(), given(rows=2, horizon=7)
    layout = model.layout
    model.transformer.config = type(TRANSFORMER)(**(vars(TRANSFORMER) | {"max_position_embeddings": layout.length(5)}))
    whole = model.imagine(context, actions, 7, temperature=0).frames
    for begun in (1, 3, 4):  # room for three frames
        rollout = model.start(context, temperature=0)
        for action in actions[:, :begun].unbind(1):
            rollout.step(action)
        wide = rollout.expand(3)
        copied = wide.fork()
        for each in (wide, copied):
            for action in actions[:, begun:].unbind(1):
                each.step(action.repeat_interleave(3, 0))
            close(each.frames[:, 2:], whole.repeat_interleave(3, 0))
            assert each.anchors == [3, 6]


def test_positions_without_room_for_a_frame_are_refused():
    model = make_model()
    model.transformer.config = type(TRANSFORMER)(**(vars(TRANSFORMER) | {"max_position_embeddings": 20}))
    with pytest.raises(ValueError, match="max_position_embeddings=20 has no room"):
        model.start(given()[0])


def test_a_longer_dream_than_announced_grows():
    model, (context, actions) = make_model(), given()
    dream = model.imagine(context, actions, 4, temperature=0)
    rollout = model.start(context, temperature=0, horizon=1)
    for action in actions.unbind(1):
        rollout.step(action)
    close(rollout.frames[:, 2:], dream.frames)


# -- learner -----------------------------------------------------------------------------------------------------------


def test_the_policy_acts_outside_the_models_precision():
    learner = WorldModelLearner(make_model(), LEARNER, seed=0)
    learner.dtype = torch.bfloat16
    context, actions = given()

    def policy(frames):
        assert not torch.is_autocast_enabled("cpu")
        return actions[:, frames.shape[1] - 2]

    dream = imagine(learner, context, policy, 3)
    assert dream.frames.shape == (3, 3, 3, 32, 32)
    rollout = learner.start(context)
    steps = [rollout.step(actions[:, t]) for t in range(3)]
    assert {step.frame.dtype for step in reversed(steps)} == {dream.frames.dtype} == {torch.float32}


def test_nothing_is_learned_while_the_world_is_frozen():
    learner, clips = WorldModelLearner(make_model(), LEARNER, seed=0), make_clips()
    before = learner.model.transformer.norm.weight.clone()
    other = threading.Thread(target=learner.update, args=(clips,))
    with learner.frozen():
        other.start()
        other.join(0.3)
        assert other.is_alive(), "it waits"
        assert torch.equal(learner.model.transformer.norm.weight, before)
        learner.start(given()[0]).step(given()[1][:, 0])  # whoever holds the world still may dream
    other.join(10)
    assert not torch.equal(learner.model.transformer.norm.weight, before)


def test_a_dream_waits_for_an_update_under_way():
    learner, (context, actions) = WorldModelLearner(make_model(), LEARNER, seed=0), given()
    rollout = learner.start(context)
    dreamer = threading.Thread(target=rollout.step, args=(actions[:, 0],))
    with learner._still:  # as an update in another thread holds it
        dreamer.start()
        dreamer.join(0.3)
        assert dreamer.is_alive()
    dreamer.join(10)
    assert rollout.frames.shape[1] == 3


def test_an_update_that_fails_leaves_the_model_in_evaluation_mode():
    learner, clips = WorldModelLearner(make_model(), LEARNER, seed=0), make_clips()
    with pytest.raises(RuntimeError):
        learner.update(clips._replace(actions=clips.actions[..., :1]))
    assert not learner.model.training
    with pytest.raises(ValueError, match="expected frames"):
        learner.model.train().tokens(clips.frames[..., :5])
    assert learner.model.tokenizer.training, "as it was"


def test_what_is_due_is_drawn_and_nothing_else():
    asked = []

    class Sampler:
        def clips(self, batch_size, length):
            asked.append(length)
            return make_clips(batch_size, length)

    rhythm = Rhythm(transformer_every_frames=4, tokenizer_every_frames=6, action_repeat=2)
    learner = WorldModelLearner(make_model(), LEARNER, seed=0, rhythm=rhythm)
    due = {frame: learner.sample(Sampler(), frame) for frame in range(2, 14, 2)}
    assert {frame: batch and tuple(part is not None for part in batch) for frame, batch in due.items()} == {
        2: None, 4: (True, False), 6: (False, True), 8: (True, False), 10: None, 12: (True, True)
    }  # fmt: skip
    assert len(asked) == 5
    assert learner.update(*due[12]).keys() >= {"tokenizer_loss", "transformer_loss"}
