"""The report's page: all tables and pictures in one self-contained HTML file."""

import base64
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from oclam.report.gallery import Picture
from oclam.report.results import Results
from oclam.report.tables import answers, tables, warnings

SECTIONS = (  # name, heading, what no caption or note says
    ("probes", "Do latent actions predict the true ones?",
     "A linear probe predicts true actions from latent actions. The lower its error, the more of the agent's "
     "movement, and the less of the distractors', is in the latent action."),
    ("returns", "Do policies learn from them?",
     "An actor learns to predict the latent actions of all episodes; a small decoder learns true actions from a few "
     "labelled trajectories; the policy then acts in the environment, in the view that it was trained for."),
    ("slots", "Is the agent in a slot of its own?",
     "Object-centric pretraining divides every frame among slots; those whose masked frames predict the actions best "
     "are taken for the agent's."),
    ("reconstructions", "What does the forward model predict?", ""),
    ("latents", "How are latent actions arranged?", ""),
    ("policies", "How do the policies move?", ""),
    ("losses", "Did training converge?", ""),
    ("cost", "What did it cost?", "Parameters, time and hardware."),
)
MEDIA = {".svg": "image/svg+xml", ".png": "image/png", ".mp4": "video/mp4"}


def page(results: Results, pictures: list[Picture]) -> str:
    """The whole report as HTML, with every picture's file embedded."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8"))
    return template.render(results=results, sections=SECTIONS, tables=tables(results), pictures=pictures,
                           answers=answers(results), warnings=warnings(results), embed=_embed)


def _embed(path):
    return f"data:{MEDIA[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"
