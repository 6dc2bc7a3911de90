"""Where scores must not go: among the rows that are read."""

from collections.abc import Sequence

from data_pipelines.file_listing import reads
from data_pipelines.storage import Location, StoragePath
from scoring.checks import ScoringError
from scoring.score_writer import file_name


def refuse_own_input(places: Sequence[StoragePath], locations: Sequence[Location], target: StoragePath) -> None:
    """Refuse to write scores where they would replace their input, or be read with it next time.

    Args:
        places: Files that are read, or folders.
        locations: What was given, and is listed anew next time: folders, files and globs.
        target: The folder of the scores.

    Raises:
        ScoringError: It holds one of the places, or lies where a location is listed.
    """
    output = _settled(target)
    within = [place for place in places if _settled(place).is_in(output)]
    if within:
        raise ScoringError(f"the output {target} holds the input {within[0]}; write the scores elsewhere")
    file = output / file_name("00000-00000000")
    for location in map(StoragePath.of, locations):
        if reads(_settled(location), file):
            raise ScoringError(
                f"the output {target} lies in the input {location}, and would be read with it next time; write the "
                f"scores elsewhere"
            )


def _settled(path: StoragePath) -> StoragePath:
    # Its store's options say how it is reached, and not where it is; a link is another name of a folder.
    return StoragePath(str(path.local.resolve()) if path.is_local else path.uri)
