"""Functions and methods of libraries, replaced where they are defined and wherever they were imported to."""

import functools
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from . import library_functions as ours
from .report import Entry, Report
from .rollout import lewm_rollout

ORIGINAL = "_jepa_fast_original"


@dataclass(frozen=True)
class Replacement:
    """name: dotted, in `module`; a method has its class before it. parameters: of the function that is expected there,
    self left out. make: from the published function the one that serves, which hands to it what it does not serve.
    """

    module: str
    name: str
    parameters: tuple[str, ...]
    make: Callable[[Callable[..., Any]], Callable[..., Any]]
    title: str

    @property
    def dotted(self) -> str:
        return f"{self.module}.{self.name}"


REPLACEMENTS = (
    Replacement(
        "lightly.models.utils",
        "update_momentum",
        ("model", "model_ema", "m"),
        ours.update_momentum,
        "ema_update_",
    ),
    Replacement(
        "solo.utils.momentum",
        "MomentumUpdater.update",
        ("online_net", "momentum_net"),
        ours.momentum_updater,
        "ema_update_",
    ),
    Replacement("solo.losses.vicreg", "variance_loss", ("z1", "z2"), ours.solo_variance, "variance_loss"),
    Replacement(
        "solo.losses.vicreg", "covariance_loss", ("z1", "z2"), ours.solo_covariance, "covariance_loss"
    ),
    Replacement(
        "solo.losses.vicreg",
        "vicreg_loss_func",
        ("z1", "z2", "sim_loss_weight", "var_loss_weight", "cov_loss_weight"),
        ours.solo_vicreg,
        "vicreg_loss",
    ),
    Replacement(
        "solo.losses.barlow",
        "barlow_loss_func",
        ("z1", "z2", "lamb", "scale_loss"),
        ours.solo_barlow,
        "barlow_twins_loss",
    ),
    Replacement(
        "stable_pretraining.backbone.utils",
        "TeacherStudentWrapper.update_teacher",
        (),
        ours.update_teacher,
        "ema_update_",
    ),
    Replacement(
        "stable_worldmodel.wm.lewm.lewm",
        "LeWM.rollout",
        ("info", "action_sequence", "history_size"),
        lewm_rollout,
        "the last step of each window",
    ),
    Replacement(
        "dinov3.train.ssl_meta_arch", "SSLMetaArch.update_ema", ("m",), ours.dinov3_update_ema, "ema_update_"
    ),
    Replacement(
        "src.models.utils.modules",
        "build_action_block_causal_attention_mask",
        ("T", "H", "W", "add_tokens"),
        ours.block_causal_mask,
        "a rule instead of a matrix",
    ),
    Replacement(
        "app.vjepa_2_1.models.utils.masks_dist",
        "compute_mask_distance",
        ("masks_pred", "masks_enc", "grid_size", "offset_context_loss"),
        ours.mask_distance,
        "one distance matrix for each mask",
    ),
)


def patch_functions_() -> Report:
    """Replace the module functions of other code bases that models call beside their modules: teacher updates, losses,
    masks. In the module that defines them, and in every module that has imported them by name; methods in their class.

    Only code bases that have been imported are touched; call it after the imports. Doing it again changes nothing but
    modules that were imported since. `restore_functions_` undoes it.

    Returns a `Report` with a line for each function of an imported code base: what serves, or why it was left alone,
    such as "expected function ..." after an upstream change.
    """
    return Report(tuple(_patch(one) for one in REPLACEMENTS if one.module in sys.modules))


def restore_functions_() -> Report:
    """Undo `patch_functions_`."""
    entries = []
    for one in REPLACEMENTS:
        place, found = _find(one)
        published = getattr(found, ORIGINAL, None)
        if published is not None:
            _put(one, place, found, published)
            entries.append(Entry(one.dotted, "function", None, (f"restored from {one.title}",)))
    return Report(tuple(entries))


def _patch(one: Replacement) -> Entry:
    place, found = _find(one)
    if not callable(found):
        return Entry(one.dotted, "function", None, (f"expected function {one.name}",))
    if hasattr(found, ORIGINAL):
        _put(one, place, getattr(found, ORIGINAL), found)
        return Entry(one.dotted, "function", one.title)
    parameters = tuple(name for name in inspect.signature(found).parameters if name != "self")
    if parameters != one.parameters:
        reason = f"expected {one.name}({', '.join(one.parameters)}), got ({', '.join(parameters)})"
        return Entry(one.dotted, "function", None, (reason,))
    made = functools.wraps(found)(one.make(found))
    setattr(made, ORIGINAL, found)
    _put(one, place, found, made)
    return Entry(one.dotted, "function", one.title)


def _find(one: Replacement) -> tuple[Any, Any]:
    """(module or class, what it has under the name), None where there is nothing."""
    place: Any = sys.modules.get(one.module)
    *classes, name = one.name.split(".")
    for cls in classes:
        place = getattr(place, cls, None)
    return place, None if place is None else inspect.getattr_static(place, name, None)


def _put(one: Replacement, place: Any, before: Any, after: Any) -> None:
    setattr(place, one.name.rpartition(".")[2], after)
    if isinstance(place, ModuleType):
        for module in list(sys.modules.values()):
            if not isinstance(module, ModuleType):
                continue
            for name, value in list(vars(module).items()):
                if value is before:
                    setattr(module, name, after)
