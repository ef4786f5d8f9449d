"""The split, the order of the records, and going on in it exactly where one was."""

import itertools
import json

import numpy as np
import pytest

from score_sde.data import SOURCES, InMemory, Prefetched, iterate
from score_sde.data.synthetic import Synthetic
from score_sde.data.tfds import TFDS
from score_sde.errors import UserError

RECORDS = 53
BATCH = 8


@pytest.fixture
def records():
    return InMemory({"image": np.arange(RECORDS), "label": 1000 + np.arange(RECORDS)})


def take(iterator, count: int) -> np.ndarray:
    return np.stack([np.asarray(batch["image"]) for batch in itertools.islice(iterator, count)])


class TestDigits:
    def test_split_is_complete_and_disjoint(self):
        from sklearn.datasets import load_digits

        source = SOURCES["digits"]()
        train, test = source.split("train"), source.split("test")
        assert (len(train), len(test)) == (1297, 500)
        joined = np.concatenate([train.arrays["image"], test.arrays["image"]]).reshape(1797, -1)
        labels = np.concatenate([train.arrays["label"], test.arrays["label"]])
        whole = load_digits()
        # No record of the data is twice in it, so that equal multisets mean a partition.
        rows = lambda image, label: sorted((int(y), *map(int, x)) for x, y in zip(image, label, strict=True))
        assert len(set(rows(whole.data, whole.target))) == 1797
        assert rows(joined, labels) == rows(whole.data, whole.target)

    def test_split_is_the_same_at_every_call(self):
        for name in ("train", "test"):
            one, two = SOURCES["digits"]().split(name), SOURCES["digits"]().split(name)
            for field in ("image", "label"):
                np.testing.assert_array_equal(one.arrays[field], two.arrays[field])

    def test_split_does_not_depend_on_global_randomness(self):
        np.random.seed(1)
        one = SOURCES["digits"]().split("test").arrays["image"]
        np.random.seed(2)
        np.testing.assert_array_equal(one, SOURCES["digits"]().split("test").arrays["image"])

    def test_every_class_is_in_both_parts(self):
        for name in ("train", "test"):
            assert set(SOURCES["digits"]().split(name).arrays["label"]) == set(range(SOURCES["digits"]().classes))

    def test_levels(self):
        source = SOURCES["digits"]()
        image = source.split("train").arrays["image"]
        assert image.dtype == np.uint8
        assert image.shape[1:] == source.shape == (8, 8, 1)
        assert (image.min(), image.max()) == (0, source.levels - 1)


def test_every_epoch_visits_each_record_once(records):
    epochs = 4
    batches = -(-epochs * RECORDS // BATCH)
    order = take(iterate(records, BATCH, seed=0), batches).reshape(-1)[: epochs * RECORDS].reshape(epochs, RECORDS)
    for epoch in order:
        assert sorted(epoch) == list(range(RECORDS))
    for one, two in itertools.combinations(order, 2):
        assert (one != two).any()
    assert (order[0] != np.arange(RECORDS)).any()


def test_fields_stay_together(records):
    for batch in itertools.islice(iterate(records, BATCH, seed=0), 20):
        np.testing.assert_array_equal(batch["label"], 1000 + batch["image"])


def test_batch_larger_than_the_data(records):
    batch = take(iterate(records, 2 * RECORDS, seed=0), 1)[0]
    assert sorted(batch) == sorted([*range(RECORDS)] * 2)


def test_order_is_a_function_of_the_seed(records):
    one, same, other = (take(iterate(records, BATCH, seed), 30) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


@pytest.mark.parametrize("at", [0, 1, 5, 6, 7, 20])
def test_state_goes_on_exactly(at, records):
    """Also in the middle of an epoch (6 batches and a part), from a state that went through JSON."""
    whole = take(iterate(records, BATCH, seed=0), at + 20)
    first = iterate(records, BATCH, seed=0)
    take(first, at) if at else None
    state = json.loads(json.dumps(first.get_state()))
    second = iterate(records, BATCH, seed=0)
    second.set_state(state)
    np.testing.assert_array_equal(take(second, 20), whole[at:])


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_each_batch(processes, records):
    whole = take(iterate(records, BATCH, seed=0), 30)
    own = BATCH // processes
    rows = [np.arange(index * own, (index + 1) * own) for index in range(processes)]
    parts = [take(iterate(records, BATCH, 0, each), 30) for each in rows]
    assert all(part.shape == (30, BATCH // processes) for part in parts)
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
    for one, two in itertools.combinations(parts, 2):  # within the first epoch no record is in both
        assert not set(one[:6].reshape(-1)) & set(two[:6].reshape(-1))


def test_order_does_not_depend_on_the_batch_size(records):
    one, two = take(iterate(records, 4, seed=0), 40), take(iterate(records, 8, seed=0), 20)
    np.testing.assert_array_equal(one.reshape(-1), two.reshape(-1))


class TestPrefetched:
    def put(self, batch):
        return {"image": np.array(batch["image"])}

    @pytest.mark.parametrize("ahead", [1, 2, 5])
    def test_same_batches(self, ahead, records):
        fetched = Prefetched(iterate(records, BATCH, seed=0), self.put, ahead)
        got = np.stack([next(fetched)["image"] for _ in range(20)])
        np.testing.assert_array_equal(got, take(iterate(records, BATCH, seed=0), 20))

    def test_fetches_ahead(self, records):
        put = []
        fetched = Prefetched(iterate(records, BATCH, seed=0), lambda batch: put.append(batch) or batch, ahead=3)
        assert put == []  # nothing before it is asked for: a restore may come first
        next(fetched)
        assert len(put) == 3
        next(fetched)
        assert len(put) == 4

    @pytest.mark.parametrize("ahead", [1, 2, 5])
    @pytest.mark.parametrize("at", [0, 1, 9])
    def test_state_is_that_of_the_batch_last_returned(self, at, ahead, records):
        whole = take(iterate(records, BATCH, seed=0), at + 10)
        first = Prefetched(iterate(records, BATCH, seed=0), self.put, ahead)
        for _ in range(at):
            next(first)
        state = first.state
        for _ in range(4):  # what is taken later does not change the state already taken
            next(first)
        second = Prefetched(iterate(records, BATCH, seed=0), self.put, ahead)
        second.restore(state)
        assert second.state == state
        got = np.stack([next(second)["image"] for _ in range(10)])
        np.testing.assert_array_equal(got, whole[at:])

    def test_restore_drops_what_was_fetched(self, records):
        fetched = Prefetched(iterate(records, BATCH, seed=0), self.put)
        start = fetched.state
        first = next(fetched)["image"]
        for _ in range(7):
            next(fetched)
        fetched.restore(start)
        np.testing.assert_array_equal(next(fetched)["image"], first)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar_10", "has no set 'cifar_10'"),
        ("cifar10", "tfds build cifar10 --file_format"),
    ],
)
def test_a_set_of_tfds_that_is_not_there(name, message, tmp_path):
    with pytest.raises(UserError, match=message):
        TFDS(name=name, directory=str(tmp_path)).split("train")


def test_a_damaged_set_of_tfds(tmp_path):
    folder = tmp_path / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        TFDS(directory=str(tmp_path)).split("train")


def test_synthetic_images_are_the_same_at_every_call():
    source = Synthetic(size=8, channels=2, classes=3, records=8, low=0.0)
    one, two = source.split("train").arrays, source.split("train").arrays
    assert one["image"].shape == (8, *source.shape) == (8, 8, 8, 2)
    assert one["image"].dtype == np.uint8
    assert set(one["label"]) <= {0, 1, 2}
    np.testing.assert_array_equal(one["image"], two["image"])
    assert len(source.split("test")) == 2
    assert source.range == (0.0, 1.0)
    with pytest.raises(UserError, match="multiple of 4"):
        Synthetic(size=10)
