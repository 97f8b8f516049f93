"""Items of a benchmark from the hub, and what to say where there is none."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from transfuse.errors import DataError, TransfuseError
from transfuse.evaluate.benchmark_rows import FIELD_KINDS
from transfuse.evaluate.benchmark_table import BENCHMARKS, published_form
from transfuse.evaluate.harness_definitions import leaf_names

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._index import Entry


def fetched(name: str, task: str, manager: "TaskManager") -> Any:
    """lm-eval's tasks over the hub's data, fetched where they are not in its cache.

    Args:
        name: of the benchmark, for error messages.
        task: of the task, group or tag.
        manager: lm-eval's list of definitions.

    Returns:
        What `TaskManager.load` returns.

    Raises:
        DataError: the hub cannot be reached, or does not have it; says what to download and where to put it.
    """
    from huggingface_hub import constants, get_session

    if not constants.HF_HUB_OFFLINE:
        try:
            get_session().head(constants.ENDPOINT, timeout=10)
        except Exception as err:  # the session's own error classes differ from one HTTP library to the next
            raise DataError(
                f"benchmark {name!r}: no data is given, and the hub ({constants.ENDPOINT}) cannot be reached to fetch "
                f"it. {what_to_download(name, task, manager.task_index)} What was fetched before is used with "
                f"HF_HUB_OFFLINE=1."
            ) from err
    try:
        return manager.load([task])
    except TransfuseError:
        raise
    except Exception as err:  # data sets, metrics and Python tasks raise whatever they like
        raise DataError(
            f"benchmark {name!r}: lm-eval could not fetch or read its data ({said(err)}). "
            f"{what_to_download(name, task, manager.task_index)}"
        ) from err


def what_to_download(name: str, task: str, index: Mapping[str, "Entry"]) -> str:
    """Where a benchmark's items are to be had, what their rows hold, and how they are given."""
    first = next((index[leaf].cfg or {} for leaf in leaf_names(task, index) if leaf in index), {})
    hub, configuration = first.get("dataset_path"), first.get("dataset_name")
    form = published_form(hub, configuration)
    given = f"and give the folder with it as data (--data {name}=FOLDER)"
    if form is None:
        return f"Download {hub or 'its data'} ({configuration or 'default'}) {given}."
    benchmark = BENCHMARKS[form]
    kinds = [f"{field} ({FIELD_KINDS[kind].wording})" for field, kind in benchmark.fields.items()]
    fields = ", ".join([*kinds, benchmark.subject] if benchmark.subject else kinds)
    return (
        f"Download {benchmark.files} of https://huggingface.co/datasets/{benchmark.hub} {given}; a file of your own "
        f"holds rows with {fields}."
    )


def said(err: BaseException) -> str:
    """An error of another library in one line."""
    lines = str(err).strip().splitlines() or [""]
    return f"{type(err).__name__}: {lines[0][:200]}"
