import pytest
from tiny import write_reviews

from compressor.data.rows import DataSets, open_data


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> DataSets:
    """Labelled reviews and a pool without labels."""
    folder = tmp_path_factory.mktemp("rows")
    write_reviews(folder)
    data = {"train": "reviews.csv", "unlabelled": ["pool.txt"], "text": "review", "label": "stars", "max_tokens": 32}
    return open_data(data, base=folder)
