"""The report's page: every table and picture in one self-contained HTML file."""

import base64
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from oclam.report.tables import tables, warnings

__all__ = ["page"]

SECTIONS = (  # name, heading, what the reader looks at
    ("probes", "Do latent actions hold the true ones?",
     "A linear probe reads true actions from latent actions. The lower its error, the more of what the agent did, and "
     "the less of what moved behind it, is in the latent action."),
    ("returns", "What are they worth?",
     "An actor learns the latent actions of all videos; a small decoder learns true actions from a few labelled "
     "trajectories; the policy then acts in the environment, in the view that it was trained for."),
    ("slots", "What do the slots see?",
     "Object-centric pretraining divides every frame among slots; those that predict actions best are the agent's."),
    ("reconstructions", "What does the forward model know?", "The next frame from this one and a latent action."),
    ("latents", "How are latent actions arranged?", "Where colours are sorted, the latent action knows the true one."),
    ("policies", "How do the policies move?",
     "The beginning of the first evaluation episode, at the largest label budget."),
    ("losses", "Did training converge?", "Every model's training loss."),
    ("cost", "What did it cost?", "Parameters, time and hardware."),
)
MEDIA = {".svg": "image/svg+xml", ".png": "image/png", ".gif": "image/gif"}


def page(results, pictures):
    """The whole report as HTML text; every picture's file is read and embedded."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(Path(__file__).with_name("report.html.j2").read_text())
    return template.render(results=results, sections=SECTIONS, tables=tables(results), pictures=pictures,
                           warnings=warnings(results), embed=_embed)


def _embed(path):
    return f"data:{MEDIA[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"
