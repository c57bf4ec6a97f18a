"""A trial that several workers train together: Ray Train within a trial of Ray Tune.

The trial's own process trains nothing. It has Ray Train start the workers, which have a placement group of their own, and
forwards their reports to Tune. Each computes its share of every batch (see `cotd.training.distributed`); the first writes
the folder.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cotd.errors import CotdError
from cotd.training.folder import TrialFolder
from cotd.utils.text import first_line
from pipelines.cluster.resources import Needs

# The others wait for the first worker's validation in a collective, by default half an hour at most. Ray Train notices a worker
# that has died, and ends all: this is for one that hangs.
COLLECTIVE_SECONDS = 4 * 3600


def train_together(work: Callable[[dict[str, Any]], None], params: dict[str, Any], needs: Needs) -> None:
    """Has workers call `work` with `params` and their own number as `worker`, and waits for them.

    A failure leaves its traceback in the trial's folder, or which worker has died.

    Raises:
        CotdError: a worker failed or died. All of them have ended.
    """
    from ray import train
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    def as_worker(config: dict[str, Any]) -> None:
        work({**config, "worker": train.get_context().get_world_rank()})

    # Its own state alone, which goes with it: checkpoints are in the trial's folder.
    state = tempfile.mkdtemp(prefix="cotd-train-")
    trainer = TorchTrainer(
        as_worker,
        train_loop_config=params,
        scaling_config=train.ScalingConfig(
            num_workers=needs.workers, use_gpu=needs.gpus > 0, resources_per_worker={"CPU": needs.cpus, "GPU": needs.gpus}
        ),
        run_config=train.RunConfig(  # without retries: Tune tries a failed trial again, from its checkpoint
            name=f"workers-{uuid.uuid4().hex}",
            callbacks=[TuneReportCallback()],
            worker_runtime_env={} if needs.gpus else {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}},
            storage_path=state,
        ),
        torch_config=TorchConfig(timeout_s=COLLECTIVE_SECONDS),
    )
    try:
        trainer.fit()
    except train.WorkerGroupError as error:
        died, reason = first_cause(error.worker_failures)
        folder = TrialFolder(Path(params["folder"]))
        with contextlib.suppress(OSError):
            if died or not folder.error.is_file():  # a worker that is alive has written its traceback
                folder.error.write_text(reason + "\n", encoding="utf-8")
        raise CotdError(reason) from error
    finally:
        shutil.rmtree(state, ignore_errors=True)


def first_cause(failures: dict[int, Exception]) -> tuple[bool, str]:
    """(whether a worker has died, why the workers failed in one line): the others fail while they wait for one that has died.

    Args:
        failures: worker → its failure as Ray Train knows it.
    """
    from ray.exceptions import RayActorError

    causes = {rank: getattr(error, "health_check_failure", error) for rank, error in sorted(failures.items())}
    for rank, cause in causes.items():
        if isinstance(cause, RayActorError):
            return True, f"worker {rank} has died: {first_line(cause)}"
    cause = next((c for c in causes.values() if isinstance(c, CotdError)), next(iter(causes.values())))
    return False, " ".join(str(cause).split()) or repr(cause)
