"""A model as a folder or a repository of the Hugging Face hub: weights, config.json and a model card.

`from_pretrained`, `save_pretrained` and `push_to_hub` are huggingface_hub's.
"""

from pathlib import Path

from huggingface_hub import ModelCard, ModelHubMixin, hf_hub_download

from oclam.artifacts import load_tensors, read_json, save_tensors, write_json
from oclam.errors import UserError, one_line
from oclam.export.card import model_card

WEIGHTS, CONFIG = "model.safetensors", "config.json"


class Hub(ModelHubMixin):
    """What all exported models share: strict loading, one line for bad files, and the card.

    A class's arguments are plain values, which config.json keeps; `origin` is what the card says (oclam.export.card).
    """

    origin: dict

    def _save_pretrained(self, save_directory: Path) -> None:
        save_tensors(save_directory / WEIGHTS, self.state_dict())
        write_json(save_directory / CONFIG, {"kind": type(self).__name__, **self._hub_mixin_config})

    def generate_model_card(self, *_, **__) -> ModelCard:
        return model_card(type(self), self.origin)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **arguments):
        """The model in a folder or repository; `arguments` are huggingface_hub's, which would not name a bad file."""
        path = Path(pretrained_model_name_or_path) / CONFIG
        if path.is_file() and not isinstance(_read(read_json, path), dict):
            raise UserError(f"{path}: not written by `python -m oclam.export`; name a folder that is")
        return super().from_pretrained(pretrained_model_name_or_path, **arguments)

    @classmethod
    def _from_pretrained(cls, *, model_id, revision, cache_dir, force_download, local_files_only, token, config=None,
                         **arguments):
        kind = (config or {}).get("kind")
        if kind != cls.__name__:
            raise UserError(f"{model_id}/{CONFIG}: " + (
                f"holds a {kind}; load it with {kind}.from_pretrained" if kind else
                "missing, or not written by `python -m oclam.export`"))
        path = Path(model_id) / WEIGHTS
        if not Path(model_id).is_dir():
            path = hf_hub_download(model_id, WEIGHTS, revision=revision, cache_dir=cache_dir, token=token,
                                   force_download=force_download, local_files_only=local_files_only)
        tensors, _ = _read(load_tensors, path)
        try:
            model = cls(**arguments)
            model.load_state_dict(tensors)
        except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"{path}: does not fit the {CONFIG} beside it ({one_line(error)}); "
                            "export it again, or get it again") from None
        return model.eval()


def _read(read, path):
    """What `read` finds in a file, which no stage has made."""
    try:
        return read(path)
    except UserError as error:
        raise UserError(f"{str(error).partition(';')[0]}; export it again, or get it again") from None
