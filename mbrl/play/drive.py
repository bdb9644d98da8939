"""A dream and the simulator beside it under the same actions, with a way back to every moment.

    drive = Drive(world, env, seed=1)
    drive.begin(drive.fresh(seed=3))           # a reset; or a moment of a recorded episode
    moment = drive.step(action)                # moment.dream, moment.real, moment.predicted["reward"], moment.reward
    drive.go(drive.here.parent); drive.step(other)    # another way from the moment before

The draws of a step follow from its moment's id, so a dream that was left is taken up again as it was, from a copy that
was kept on the way or by repeating the actions since. Beyond the model's positions a dream begins again from its own
last frames, and the moment says so (`Moment.anchored`).

Letters: K frames of a stack, T decisions of an episode, A action.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import envs
from envs.wrappers import Snapshot
from mbrl.build import ENDLESS
from mbrl.collector import EpisodeRecorder, expert_action
from mbrl.experiment.run import stream_seed
from mbrl.experiment.settings import UserError
from mbrl.play.tree import Moment, Tree
from mbrl.replay import Episode
from mbrl.rollout import to_float, to_uint8
from world_model import Origin
from world_model.api import Rollout, WorldModel

MOMENTS = 4000  # held; 12,288 bytes an image of 64 x 64
COPY_EVERY = 5  # decisions between two copies of a dream that are kept
COPIES = 32  # kept; of `small` 4 to 12 MB each
LONGEST = 256  # decisions; then a dream without a last position begins again as well, to hold fewer frames


class Start(NamedTuple):
    """Where a drive begins."""

    episode: Episode  # up to there
    stack: np.ndarray  # uint8 (K, 3, H, W), the newest real images
    state: object  # the simulator's snapshot
    source: str  # in words


class Dreaming(NamedTuple):
    """A dream under way."""

    rollout: Rollout
    temperature: float


class Drive:
    """One drive; nothing in it is thread-safe.

    Args:
        env: of the task, for this alone; its time limit is lifted.
        stack: K.
        seed: of the draws of the dreams.
    """

    def __init__(self, world: WorldModel, env: envs.PixelEnv, *, stack: int, seed: int) -> None:
        self.world, self.env = world, env
        self.episode_decisions, env.episode_decisions = env.episode_decisions, ENDLESS
        self.temperature = 0.0
        self.tree = Tree(stack, MOMENTS)
        self._seed = seed
        self._generator = torch.Generator(world.device)
        self._copies: OrderedDict[int, Dreaming] = OrderedDict()  # by moment, least recently used first
        self._live: tuple[Moment, Dreaming] | None = None  # the dream that goes on in place
        self._env_at: Moment | None = None  # the moment that the simulator is in
        self.here: Moment

    # -- where to begin ----------------------------------------------------------------------------------------------

    def fresh(self, seed: int) -> Start:
        """The first moment of the episode that `seed` gives."""
        self._env_at = None
        obs, info = self.env.reset(seed=seed)
        no_actions = np.zeros((0, *self.env.action_space.shape), np.float32)
        episode = Episode(obs[None, -3:], no_actions, np.zeros(0, np.float32), False, seed=info["seed"])
        return Start(episode, obs.reshape(-1, 3, *obs.shape[1:]), self._state(), f"reset, seed {seed}")

    def expert_episode(self, seed: int) -> Episode:
        """A whole episode of the task's scripted expert. Raises envs.NoExpert."""
        self._env_at = None
        recorder = EpisodeRecorder(self.env)
        recorder.begin(seed)
        for _ in range(self.episode_decisions):
            recorder.step(expert_action(self.env))
        return recorder.episode()

    def within(self, episode: Episode, decision: int, source: str) -> Start:
        """The moment before a decision of a recorded episode.

        Raises UserError: the episode has no such decision, or its seed was not recorded.
        """
        if episode.seed is None:
            raise UserError(f"{source}: its seed was not recorded, so the simulator cannot go there")
        if not 0 <= decision <= len(episode.actions):
            raise UserError(f"{source} has the decisions 0 to {len(episode.actions)}, not {decision}")
        self._env_at = None
        moments = self.env.replay(episode.seed, episode.actions[:decision])
        frames = episode.frames[episode.prefix :]
        first = max(0, decision + 1 - self.tree.stack)
        stack = frames[first : decision + 1]
        stack = np.concatenate([np.repeat(stack[:1], self.tree.stack - len(stack), 0), stack])
        before = Episode(
            frames[: decision + 1],
            episode.actions[:decision],
            episode.rewards[:decision],
            False,
            successes=None if episode.successes is None else episode.successes[:decision],
            seed=episode.seed,
        )
        return Start(before, stack, moments[-1].states[-1], f"{source}, decision {decision}")

    def begin(self, start: Start) -> Moment:
        """Be there: a moment without one before it."""
        context = to_float(torch.from_numpy(start.stack)[None])
        self.here = self.tree.add(
            None,
            None,
            start.source,
            depth=len(start.episode.actions),
            dream=start.stack[-1],
            real=start.stack[-1],
            state=start.state,
            predicted={},
            context=context,
            seen=start.stack,
            before=start.episode,
        )
        return self._arrived()

    # -- going on ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, action: np.ndarray, pilot: str) -> Moment:
        """One decision of both. Raises UserError where the task has ended."""
        here = self.here
        if here.terminated:
            raise UserError("the task has ended here: go back, or begin anew")
        action = np.clip(np.asarray(action, np.float32), -1.0, 1.0)
        dreaming = self.dreaming()
        if self.temperature != dreaming.temperature:
            dreaming = Dreaming(dreaming.rollout.fork(self.temperature), self.temperature)
        dream, predicted = self._dream(dreaming.rollout, self.tree.next_id, action)
        obs, reward, terminated, _, info = self._simulator(here).step(action)
        self.here = self.tree.add(
            here,
            action,
            pilot,
            dream=to_uint8(dream[0]).cpu().numpy(),
            real=obs[-3:],
            state=self._state(),
            predicted=predicted,
            reward=reward,
            success=bool(info["success"]),
            terminated=terminated,
            temperature=self.temperature,
        )
        self._env_at = self.here
        self._live = self.here, dreaming
        self.here.anchored = dreaming.rollout.steps_left == 0
        if self.here.anchored or dreaming.rollout.frames.shape[1] > LONGEST:
            self.here.context = dreaming.rollout.frames[:, -self.world.context_length :].clone()
            self._live = None
        return self._arrived()

    def go(self, moment: Moment) -> Moment:
        """Be at a moment; the dream and the simulator follow with the next step."""
        self.here = moment
        return moment

    def wake(self) -> Moment:
        """Let the dream begin again from what is real here."""
        here, stack = self.here, self.tree.real_stack(self.here)
        self.here = self.tree.add(
            here,
            None,
            "woken",
            dream=here.real,
            real=here.real,
            state=here.state,
            predicted={},
            terminated=here.terminated,
            context=to_float(torch.from_numpy(stack)[None]),
            seen=stack,
        )
        return self._arrived()

    @torch.no_grad()
    def dreaming(self) -> Dreaming:
        """The dream as it is here; stepping its rollout itself would move it on, so look at a `fork` of that."""
        if self._live is None or self._live[0] is not self.here:
            if self._live is not None:
                self._keep(*self._live)
            self._live = self.here, self._again(self.here)
        moment, dreaming = self._live
        if moment.depth % COPY_EVERY == 0 and moment.context is None and moment.id not in self._copies:
            self._keep(moment, Dreaming(dreaming.rollout.fork(), dreaming.temperature))
        return dreaming

    def simulator(self) -> envs.PixelEnv:
        """The simulator as it is here; it may be looked at, and is restored before the next step anyway."""
        return self._simulator(self.here)

    def episode(self) -> Episode:
        """What was driven to here since the reset, as it was in the simulator, no longer than an episode.

        Raises UserError: nothing was driven, or the beginning is forgotten.
        """
        path = self.tree.path(self.here)
        before, taken = path[0].before, [moment for moment in path if moment.action is not None]
        if before is None:
            raise UserError("the beginning of this drive is forgotten: begin anew to keep a demonstration")
        if not taken:
            raise UserError("nothing was driven yet")
        longest = self.episode_decisions
        successes = None
        if before.successes is not None or not len(before.actions):
            known = () if before.successes is None else before.successes
            successes = np.asarray([*known, *(moment.success for moment in taken)], np.float32)[:longest]
        rewards = [*before.rewards, *(moment.reward for moment in taken)]
        return Episode(
            np.stack([*before.frames, *(moment.real for moment in taken)])[: longest + 1],
            np.stack([*before.actions, *(moment.action for moment in taken)])[:longest],  # type: ignore[list-item]
            np.asarray(rewards, np.float32)[:longest],
            path[-1].terminated and len(rewards) <= longest,
            successes=successes,
            seed=before.seed,
        )

    def close(self) -> None:
        self.world.close()
        self.env.close()

    # -- the dream ---------------------------------------------------------------------------------------------------

    def _dream(self, rollout: Rollout, number: int, action: np.ndarray) -> tuple[Tensor, dict[str, float]]:
        """The step to the moment `number`: its frame (1, 3, H, W) and what the heads say."""
        self._generator.manual_seed(stream_seed(self._seed, "moment", number))
        step = rollout.step(torch.from_numpy(action)[None].to(self.world.device))
        # Heads are asked for at once, here and when a dream is repeated: read later, they are computed together with
        # the next token, and their last bits differ.
        heads = {name: float(value[0]) for name, value in step.heads.items()}
        return step.frame, heads

    def _again(self, moment: Moment) -> Dreaming:
        """The dream at a moment, from the nearest one before it that has a copy, or where it began."""
        behind = []
        while moment.id not in self._copies and moment.context is None:
            behind.append(moment)
            assert moment.parent is not None, "a start has its context"
            moment = moment.parent
        if moment.id in self._copies:
            self._copies.move_to_end(moment.id)
            copy = self._copies[moment.id]
            dreaming = Dreaming(copy.rollout.fork(), copy.temperature)
        else:
            dreaming = self._started(moment)
        for later in reversed(behind):
            assert later.action is not None
            if later.temperature != dreaming.temperature:
                dreaming = Dreaming(dreaming.rollout.fork(later.temperature), later.temperature)
            self._dream(dreaming.rollout, later.id, later.action)
        return dreaming

    def _started(self, moment: Moment) -> Dreaming:
        """The dream where it begins, or begins again."""
        assert moment.context is not None
        rollout = self.world.start(
            moment.context.to(self.world.device),
            temperature=self.temperature,
            generator=self._generator,
            origins=self._origin(moment),
        )
        return Dreaming(rollout, self.temperature)

    def _origin(self, moment: Moment) -> list[Origin] | None:
        """How the simulator as a world model gets there."""
        path = self.tree.path(moment)
        before = path[0].before
        if before is None or before.seed is None:
            return None
        actions = [*before.actions, *(m.action for m in path if m.action is not None)]
        return [Origin(before.seed, np.reshape(actions, (-1, *self.env.action_space.shape)), len(actions))]

    def _keep(self, moment: Moment, dreaming: Dreaming) -> None:
        self._copies[moment.id] = dreaming
        self._copies.move_to_end(moment.id)
        if len(self._copies) > COPIES:
            self._copies.popitem(last=False)

    # -- the simulator -----------------------------------------------------------------------------------------------

    def _simulator(self, moment: Moment) -> envs.PixelEnv:
        if self._env_at is not moment:
            stack = self.tree.real_stack(moment)
            self.env.restore(Snapshot((moment.state,), stack.reshape(-1, *stack.shape[2:]), 0))
            self._env_at = moment
        return self.env

    def _state(self) -> object:
        return self.env.snapshot().states[-1]

    def _arrived(self) -> Moment:
        """Have room for the next moment."""
        forgotten = self.tree.forgotten
        self.tree.make_room(self.here)
        if forgotten != self.tree.forgotten:
            for gone in [id for id in self._copies if id not in self.tree.moments]:
                del self._copies[gone]
        return self.here
