r"""The command :obj:`e2former`."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from .base import TrainingModule
from .checkpoints import BestCheckpoint, LastCheckpoint, folder
from .datamodule import GraphDataModule
from .ema import ExponentialAverage
from .predictions import PredictionWriter


class CLI(LightningCLI):
    """Lightning's command line with the callbacks of this package, each a section of the file."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(ExponentialAverage, "ema")
        # The best comes first: the state to go on from knows it.
        parser.add_lightning_class_args(BestCheckpoint, "best")
        parser.add_lightning_class_args(LastCheckpoint, "last")
        parser.add_lightning_class_args(PredictionWriter, "predictions")

    def before_instantiate_classes(self) -> None:
        # Lightning finds `best` in the process that made it only.
        if self.subcommand is None:
            return
        config = self.config[self.subcommand]
        if config.ckpt_path in ("best", "last"):
            path = folder(config.trainer.default_root_dir) / f"{config.ckpt_path}.ckpt"
            if path.exists():
                config.ckpt_path = str(path)
            elif (self.subcommand, config.ckpt_path) == ("fit", "last"):
                config.ckpt_path = None  # a job that is started again and again
            else:
                raise FileNotFoundError(f"`ckpt_path` = {config.ckpt_path}: there is no '{path}'")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self._get(self.config_init, "trainer")
        if config.get("logger") in (None, True):
            root = config.get("default_root_dir") or "."
            kwargs["logger"] = [TensorBoardLogger(root, "tensorboard"), CSVLogger(root, "csv")]
        return super().instantiate_trainer(**kwargs)


def make_cli(args: list[str] | None = None, run: bool = True) -> CLI:
    r"""Reads arguments, and runs what they say.

    Args:
        args (list of str, optional): The arguments. (default: :obj:`None`, those of the command)
        run (bool, optional): If set to :obj:`False`, there is no subcommand and everything is
            only built. (default: :obj:`True`)
    """
    return CLI(
        TrainingModule,
        GraphDataModule,
        subclass_mode_model=True,
        args=args,
        run=run,
        seed_everything_default=0,
        # Forces are gradients, in validation too.
        trainer_defaults={"inference_mode": False},
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"prog": "e2former"} if not run else {},
    )


def main() -> None:
    """The entry point."""
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    # We know them from the order of the batches.
    warnings.filterwarnings("ignore", "Couldn't infer the batch indices")
    make_cli()


if __name__ == "__main__":
    main()
