"""SlotContrast beside the model of ocp, trained as ocp says: reads a distracted dataset and the frozen encoder, writes
masks of the frames that the report shows and, where the agent is segmented, every slot's measures."""

from oclam import paths
from oclam.cli import arguments, run
from oclam.comparison import train_for_comparison
from oclam.errors import Absent
from oclam.params import load
from oclam.slots.models import make_model, make_observer
from oclam.training import best_device


def main():
    task, seed = arguments("task", "seed")
    params = load("compute", "ocp", "slotcontrast", "extras.slotcontrast")
    if not params.extras.slotcontrast:
        raise Absent("extras.slotcontrast is false")
    ocp = params.ocp.model_copy(update={"model": "slotcontrast", "steps": params.slotcontrast.steps})
    device = best_device(params.compute.threads)
    observer = make_observer(ocp, paths.encoder, device)
    train_for_comparison("slotcontrast", task, seed, params, ocp,
                         lambda size: make_model(ocp, None, observer, size), observer, device,
                         paths.encoder, model="SlotContrast")


if __name__ == "__main__":
    run(main)
