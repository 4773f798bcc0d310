"""The trainer: `run_trial` fine-tunes one configuration in this process. It knows neither Ray nor Optuna.

Read down the page: `run_trial` loops over the epochs; `_Run` builds network, optimizer and objective, trains and scores
an epoch step by step, and saves what a resume needs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from delta_tune.config import LOSS_PARTS, METRICS, Metric, TrialConfig, UserError
from delta_tune.data.augmentation import center_crop
from delta_tune.data.batches import (
    eval_batch_size,
    filled,
    read_ahead,
    same_shapes,
    shuffled_batches,
    training_batches,
)
from delta_tune.data.device_copies import pinned
from delta_tune.data.mixing import mix
from delta_tune.data.training_images import training_images
from delta_tune.models.backbones import build_target, resolve_layers
from delta_tune.models.devices import autocast, fork_rng, half_precision, synchronize, to_device
from delta_tune.models.feature_maps import head_function
from delta_tune.results.columns import SCORES
from delta_tune.training.checkpoint import Checkpoint, ResumePoint, cpu_copy, read_resume_point
from delta_tune.training.class_shares import log_shares, shift_bias
from delta_tune.training.co_tuning import SourceHead
from delta_tune.training.objective import Objective
from delta_tune.training.optimizer import build_optimizer, parameter_groups, set_device, set_learning_rate
from delta_tune.training.source_map_index import StepKey
from delta_tune.training.source_maps import SourceMaps, SourceMapStore
from delta_tune.training.task import Task
from delta_tune.training.weight_average import WeightAverage

DIVERGED_FACTOR = 10
"""A run diverged if the mean training loss of an epoch is above this multiple of the first batch's and of guessing."""

Row = dict[str, Any]
SplitName = Literal["train", "val", "test"]


@dataclass(kw_only=True)
class TrialResult:
    """How one run ended."""

    state: Literal["completed", "diverged"]
    epochs: list[Row] = field(default_factory=list)
    """A row per epoch: epoch (from 1), train_loss and its unweighted parts, val_…, lr, seconds, eval_seconds."""
    best_epoch: int | None = None
    """The first epoch with the best metric."""
    error: str | None = None
    """Why the run diverged."""
    model_state: dict[str, Tensor] | None = None
    """Weights after the best epoch, on the CPU; None if the run saved them in its checkpoint folder."""

    @property
    def best_metrics(self) -> Row:
        """The row of the best epoch."""
        return self.epochs[self.best_epoch - 1] if self.best_epoch else {}


class Diverged(Exception):
    """The loss is not finite, or far above where it began."""


def run_trial(
    task: Task,
    config: TrialConfig,
    report: Callable[[Row], None] | None = None,
    *,
    metric: Metric = "val_accuracy",
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    maps: SourceMapStore | None = None,
    compile_with: str | None = None,
    also_score: Mapping[Literal["train", "test"], Collection[int]] | None = None,
    decisive: Collection[int] = (),
    saved: Callable[[int], None] | None = None,
    watch: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> TrialResult:
    """Fine-tune one configuration and score it on the validation split after every epoch.

    All randomness comes from `config.seed`: on the CPU the same seed, versions and number of threads give the same
    numbers bit for bit, interrupted and resumed or not.

    With a checkpoint folder the run is saved every `checkpoint.INTERVAL_S`, after decisive epochs and at its end. After
    a crash the epochs since then are trained, and reported, again.

    Args:
        task: data and source; what the configuration needs beyond them is measured first, unless it has been.
        config: the configuration.
        report: called with each epoch's row; with the last one's once the run's end is on disk. A resumed run first
            reports the rows up to where it continues again: its listener may have died before it got them.
        metric: chooses the best epoch.
        device: where to train.
        checkpoint: folder of this run; if it holds the same run unfinished, that run is resumed.
        maps: where trials share the source's feature maps; sharing changes no bit of the result.
        compile_with: backend of torch.compile for the target, such as "inductor"; minutes before the first epoch.
        also_score: further splits and the epochs after which to score them, into columns of their names. For studies
            of the search itself: what is chosen by a test split has no test split left.
        decisive: epochs whose report may end the run. Nothing is being written to the folder while they are reported;
            a run that goes on is saved.
        saved: called with the epoch each time the run is on disk, in the thread that saves; if it raises, so does this.
        watch: entered for each epoch's training and scoring.

    Returns:
        `completed`, or `diverged` with the reason in `error` and the rows of the epochs before.

    Raises:
        UserError: the folder holds a run of another configuration, or `also_score` is given for a method that trains
            only the head, on features of train and val.
    """
    if also_score and not config.method.trains_backbone:
        raise UserError(
            f"also_score must be empty for {config.regularizer}, whose features of other splits are not measured."
        )
    device = torch.device(device)
    with fork_rng(device):
        task.measurements.measure([config], device)
        run = _Run(task, config, metric, device, checkpoint, maps, also_score or {}, saved)
        report = report or (lambda row: None)
        saves = run.checkpoint
        with run.compiled(compile_with) if compile_with else nullcontext(), saves or nullcontext():
            run.restore()
            for row in run.rows:
                report(dict(row))
            try:
                for epoch in range(len(run.rows) + 1, config.last_epoch + 1):
                    with watch():
                        run.train_and_score(epoch)
                    ends, may_end = epoch == config.last_epoch, epoch in decisive
                    if saves is not None and ends:
                        run.save(saves, final=True)
                    if saves is not None and (ends or may_end):
                        saves.wait()
                    report(dict(run.rows[-1]))
                    if saves is not None and not ends and (saves.due or may_end):
                        run.save(saves)
            except Diverged as reason:
                return run.result("diverged", str(reason))
            return run.result("completed")


def lr_factor(config: TrialConfig, time_in_epochs: float) -> float:
    """Learning rate as a factor of the peak, `time_in_epochs` ∈ [0, max_epochs) into the run."""
    factor = 1.0
    if config.schedule == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * time_in_epochs / config.max_epochs))
    elif config.schedule == "step" and time_in_epochs >= config.max_epochs * 2 / 3:
        factor = 0.1
    return factor * min(1.0, time_in_epochs / config.warmup_epochs) if config.warmup_epochs else factor


def far_above_start(loss: float, first_loss: float, guessing_loss: float) -> str | None:
    """In words, what a diverged run's loss is far above: the first batch's, or that of guessing; None if it is not.

    A run that begins with a fitted head begins far below guessing, and its first steps may well lead back above.
    """
    start, what = max((first_loss, "the first batch's"), (guessing_loss, "that of guessing,"))
    return f"{what} {start:.4g}" if loss > DIVERGED_FACTOR * start else None


class _Run:
    """One run: what is trained, and its progress so far (`rows`, `best_epoch`, `first_loss`)."""

    def __init__(
        self,
        task: Task,
        config: TrialConfig,
        metric: Metric,
        device: torch.device,
        checkpoint: Path | None,
        maps: SourceMapStore | None,
        also_score: Mapping[Literal["train", "test"], Collection[int]],
        saved: Callable[[int], None] | None,
    ) -> None:
        self.task, self.config, self.metric, self.device = task, config, metric, device
        self.also_score, self.kind = also_score, task.dataset.kind
        backbone = task.backbone
        start = torch.Generator().manual_seed(config.seed)
        drop_path = config.drop_path if config.method.trains_backbone else None
        self.model = build_target(backbone, len(task.dataset.classes), start, drop_path)
        head = self.model.get_submodule(backbone.head)
        if config.needs_fitted_head:
            self.fitted = task.measurements.fitted_head()
            head.load_state_dict({name: torch.tensor(value) for name, value in self.fitted.state.items()})
        offsets: Tensor | None = None
        if config.logit_adjustment and not config.method.fits_head:
            offsets = config.logit_adjustment * log_shares(task.dataset.train.labels, len(task.dataset.classes))
            if config.needs_fitted_head:  # fitted without: with the offsets its logits are what they were
                shift_bias(head, -offsets)
            offsets = offsets.to(device)
        self.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.frozen_features = not config.method.trains_backbone
        self.logits: Callable[[Tensor], Tensor] = self.model
        if self.frozen_features:  # the measured features go straight into the head
            self.model.requires_grad_(False)
            head.requires_grad_(True)
            self.logits = head_function(self.model, backbone.head, **backbone.input_shape)
        groups = parameter_groups(self.model, backbone.head, config)
        source_head: SourceHead | None = None
        if config.effective_co_tuning:
            source_head = SourceHead(backbone, task.measurements.learnt_relationship(), device)
            groups.append({"params": list(source_head.module.parameters()), "multiplier": 1.0})
        self.parameters = [p for group in groups for p in group["params"]]
        self.optimizer = build_optimizer(groups, config, device)
        weights: Tensor | None = None
        if config.class_weights == "balanced":
            weights = self.kind.balanced_weights(task.dataset.train.labels, len(task.dataset.classes)).to(device)
        if config.uses_behavior:
            factors = task.measurements.channel_factors(config, device)
            layouts = backbone.layouts_of(resolve_layers(backbone, config.layers))
            source = SourceMaps(task.source_model(device, tuple(layouts)), tuple(layouts), maps, layouts)
        else:
            source, factors, layouts = None, None, None
        self.objective = Objective(
            config, self.model, head, source, factors, weights, source_head, self.kind, offsets, layouts
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=half_precision(device) == torch.float16)
        self.average: WeightAverage | None = None
        if config.average_epochs and not self.frozen_features:
            steps = len(shuffled_batches(len(task.dataset.train), config.batch_size, torch.Generator()))
            self.average = WeightAverage(self.model, math.exp(-1 / (config.average_epochs * steps)))
        state = (self.model, self.optimizer, self.scaler, self.average)
        beside = None if source_head is None else source_head.module
        self.checkpoint = Checkpoint(checkpoint, *state, saved, beside) if checkpoint else None
        self.rows: list[Row] = []
        self.first_loss: float | None = None
        self.best_epoch: int | None = None
        self.best_state: dict[str, Tensor] | None = None

    @contextmanager
    def compiled(self, backend: str) -> Iterator[None]:
        """Train with compiled code while the block runs."""
        # Hooks are compiled in: ones that come later would be left out, and so would those of a network whose code was
        # compiled before, because torch does not look at hooks when it looks for code to use again.
        with self.objective.hooked():
            torch.compiler.reset()
            self.logits = torch.compile(self.logits, backend=backend)
            yield

    def restore(self) -> None:
        """Resume the unfinished run in the checkpoint folder, if there is one."""
        if self.checkpoint is None or (point := read_resume_point(self.checkpoint.folder)) is None:
            return
        if not self.config.same_as(point.config):
            raise UserError(
                f"{self.checkpoint.folder} holds a run of another configuration; give this one a folder of its own."
            )
        self.checkpoint.load(point, self.device)
        set_device(self.optimizer, self.device)
        self.rows = [dict.fromkeys((*LOSS_PARTS, *SCORES)) | row for row in point.rows]  # an earlier version had fewer
        self.first_loss, self.best_epoch = point.first_loss, point.best_epoch

    def train_and_score(self, epoch: int) -> None:
        """Train and score one epoch, append its row, and keep its weights in memory if it is the best.

        Raises:
            Diverged: no row is appended.
        """
        # Order, augmentation and dropout depend on seed and epoch only, so a resumed run needs no generator's state.
        torch.manual_seed(self.config.seed * 1_000_003 + epoch)
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
        start = time.perf_counter()
        losses, lr = self._train(epoch, generator)
        synchronize(self.device)
        trained = time.perf_counter()
        scores = self._score("val")
        due = [split for split, epochs in self.also_score.items() if epoch in epochs]
        also = {f"{split}_{name}": value for split in due for name, value in self._score(split).items()}
        row: Row = {"epoch": epoch, "train_loss": losses["train_loss"]}
        row |= {part: losses.get(part) for part in LOSS_PARTS}
        row |= dict.fromkeys(SCORES) | {f"val_{name}": value for name, value in scores.items()} | also
        row |= {"lr": lr, "seconds": trained - start, "eval_seconds": time.perf_counter() - trained}
        if not math.isfinite(scores["loss"]):
            raise Diverged(f"the validation loss is {scores['loss']} after epoch {epoch}")
        self.rows.append(row)
        sign = 1 if METRICS[self.metric] == "max" else -1
        if self.best_epoch is None or sign * row[self.metric] > sign * self.rows[self.best_epoch - 1][self.metric]:
            self.best_epoch = epoch
            scored = self.model if self.average is None else self.average.module
            self.best_state = cpu_copy(scored.state_dict())

    def save(self, checkpoint: Checkpoint, *, final: bool = False) -> None:
        """Begin to save the state after the last epoch."""
        point = ResumePoint(
            config=self.config.record(),
            rows=self.rows,
            first_loss=self.first_loss,
            best_epoch=self.best_epoch,
            epoch=len(self.rows),
        )
        checkpoint.save(point, self.best_state, final=final)
        self.best_state = None  # the checkpoint has it

    def _train(self, epoch: int, generator: torch.Generator) -> tuple[dict[str, float], float]:
        """One epoch of training; the means of the loss and its parts over the images, and the last learning rate."""
        config, train, num_classes = self.config, self.task.dataset.train, len(self.task.dataset.classes)
        if config.method.fits_head:  # as it was built
            fitted = self.kind.loss(torch.tensor(self.fitted.logits), torch.tensor(train.labels)).item()
            return {"train_loss": fitted, "cross_entropy": fitted}, 0.0
        self.model.train(not self.frozen_features)
        if config.batch_norm == "frozen":
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        totals: dict[str, Tensor] = {}
        settings, preprocessing = config.image_settings(epoch), self.task.backbone.preprocessing
        targets, same_size = np.asarray(train.labels), same_shapes(self.device)
        batches = training_batches(targets, config.batch_size, settings.sampling, generator, same_size=same_size)
        with self.objective.hooked():
            inputs_of = self._inputs("train", batches, lambda x: training_images(x, settings, preprocessing, generator))
            for step, (indices, inputs) in enumerate(zip(batches, inputs_of, strict=True)):
                # Steps of a warm-up count from 1: at 0 the first one would do nothing
                lr = config.lr * lr_factor(config, epoch - 1 + (step + bool(config.warmup_epochs)) / len(batches))
                labels = to_device(train.labels[indices], self.device)
                inputs, labels = mix(inputs, labels, num_classes, settings, generator)
                key = StepKey(config.seed, config.batch_size, settings, epoch, step, config.backbone)
                losses = self._step(inputs, labels, key, lr)
                for name, loss in losses.items():
                    totals[name] = totals.get(name, 0) + loss.detach() * len(indices)
                # On a GPU looking at every step's loss would make it wait: there the epoch's sum tells as well.
                if self.device.type == "cpu" or self.first_loss is None or step == len(batches) - 1:
                    self._check(losses["train_loss"].item(), epoch)
        sums = torch.stack(list(totals.values())).tolist()  # one wait for all
        images = sum(map(len, batches))
        means = {name: total / images for name, total in zip(totals, sums, strict=True)}
        self._check(means["train_loss"], epoch)
        assert self.first_loss is not None
        guessing = self.kind.guessing_loss(num_classes)
        if (start := far_above_start(means["train_loss"], self.first_loss, guessing)) is not None:
            raise Diverged(
                f"the mean training loss of epoch {epoch} is {means['train_loss']:.4g}, "
                f"over {DIVERGED_FACTOR} times {start}"
            )
        return means, lr

    def _step(self, inputs: Tensor, labels: Tensor, key: StepKey, lr: float) -> dict[str, Tensor]:
        """One step of the optimizer, at `lr` for the backbone; the loss of the batch and its parts."""
        set_learning_rate(self.optimizer, lr)
        with autocast(self.device):
            self.objective.before(inputs, key)
            losses = self.objective(self.logits(inputs), labels, inputs, key)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(losses["train_loss"]).backward()  # type: ignore[no-untyped-call]
        self.objective.merge_gradients()
        if self.config.max_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update()
        return losses

    def _check(self, loss: float, epoch: int) -> None:
        """Remember the first training loss, and refuse one that is not finite."""
        if not math.isfinite(loss):
            raise Diverged(f"the training loss is {loss} in epoch {epoch}")
        if self.first_loss is None:
            self.first_loss = loss

    def _score(self, split: SplitName) -> dict[str, float]:
        """Metrics of the network, or of the average of its weights if there is one, on a split."""
        labels = self.task.dataset.for_name(split).labels
        size = eval_batch_size(self.device)
        batches = np.split(np.arange(len(labels)), range(size, len(labels), size))
        self.model.eval()
        network = self.logits if self.average is None else self.average.module.eval()
        with torch.inference_mode():  # in float32: these scores are the saved model's, and it predicts in float32
            each = self._inputs(split, batches)
            logits = [network(filled(inputs, len(labels)))[: len(inputs)] for inputs in each]
        return self.kind.metrics(torch.cat(logits).float().cpu(), torch.from_numpy(np.array(labels)))

    def _inputs(
        self, split: SplitName, batches: Sequence[np.ndarray], prepared: Callable[[Tensor], Tensor] | None = None
    ) -> Iterator[Tensor]:
        """What enters `logits`: images (B, 3, S, S), as `prepared` makes them or the centre, or the head's inputs."""
        preprocessing, images = self.task.backbone.preprocessing, self.task.dataset.for_name(split).images

        def read(indices: np.ndarray) -> Tensor:
            features = self.task.measurements.features[split] if self.frozen_features else None
            return pinned(images.batch(indices) if features is None else features[indices], self.device)

        for batch in map(read, batches) if self.device.type == "cpu" else read_ahead(read, batches):
            inputs = to_device(batch, self.device)
            if self.frozen_features:
                yield inputs
            else:
                yield center_crop(inputs, preprocessing) if prepared is None else prepared(inputs)

    def result(self, state: Literal["completed", "diverged"], error: str | None = None) -> TrialResult:
        """The run so far."""
        if self.checkpoint is None:
            return TrialResult(
                state=state, epochs=self.rows, best_epoch=self.best_epoch, error=error, model_state=self.best_state
            )
        if state == "diverged" and self.best_epoch is not None:
            self.checkpoint.keep_best(self.best_epoch, self.best_state)
        return TrialResult(state=state, epochs=self.rows, best_epoch=self.best_epoch, error=error)
