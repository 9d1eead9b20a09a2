import pytest


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory):
    """The folder of a project in which every stage has run at a tiny scale; not to be changed."""
    from tests.stages.tiny import build  # here, because most tests need none of it

    folder = tmp_path_factory.mktemp("pipeline")
    build(folder)
    return folder
