"""Hugging Face's Trainer over a mixture: train_hf_trainer.py MIXTURE OUT. Run again to continue."""

import sys

import torch
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import get_last_checkpoint

from headrace.torch import StreamLoader


class StreamTrainer(Trainer):
    def get_train_dataloader(self):
        return loader


class StreamState(TrainerCallback, ExportableState):
    """Puts the loader's state into the trainer's checkpoints, and takes it from there."""

    def state(self):
        return {"args": {}, "attributes": {"loader": loader.state_dict()}}

    def on_train_begin(self, _args, state, _control, **_):
        if state.global_step:
            loader.load_state_dict(state.stateful_callbacks["StreamState"]["attributes"]["loader"])


def for_model(batch):
    return {"pixel_values": batch.images, "labels": torch.from_numpy(batch.columns["label"])}


mixture, out = sys.argv[1:]
set_seed(0)
half = (0.5, 0.5, 0.5)
loader = StreamLoader(mixture, global_batch=16, columns=["label"], normalise=(half, half), collate=for_model)
config = ConvNextConfig(num_stages=1, hidden_sizes=[16], depths=[1], num_labels=10)
arguments = TrainingArguments(
    out,
    max_steps=20,
    save_steps=5,
    ignore_data_skip=True,  # the loader knows where it stands
    report_to="none",
    use_cpu=not torch.cuda.is_available(),
)
trainer = StreamTrainer(ConvNextForImageClassification(config), arguments, callbacks=[StreamState()])
trainer.train(resume_from_checkpoint=get_last_checkpoint(out))
loader.close()
