import copy
import os
import pickle
import threading

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from common.errors import ConfigError, OrderError
from common.randomness import (
    BLOCK,
    KEY_BYTES,
    Keystream,
    SecureRandomness,
    normals,
    poisson_sample,
)

KEY = bytes(range(KEY_BYTES))


def test_the_keystream_is_chacha20_of_rfc_8439() -> None:
    # RFC 8439 appendix A.1, test vector 1: zero key, zero nonce, counter 0.
    words = np.empty(8, np.uint64)
    Keystream(bytes(32)).fill(words)
    expected = (
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
    )
    assert words.tobytes().hex() == expected


def test_a_new_segment_takes_the_next_nonce_and_repeats_nothing() -> None:
    stream = Keystream(KEY, segment_bytes=64)
    parts = [np.empty(8, np.uint64) for _ in range(3)]
    for part in parts:
        stream.fill(part)
    nonce = bytes(4) + (1).to_bytes(8, "little") + bytes(4)
    encryptor = Cipher(algorithms.ChaCha20(KEY, nonce), mode=None).encryptor()
    assert parts[1].tobytes() == encryptor.update(bytes(64))
    assert len({part.tobytes() for part in parts}) == 3


def test_a_fill_larger_than_a_block_is_refused_instead_of_leaving_old_memory() -> None:
    with pytest.raises(OrderError):
        Keystream(KEY).fill(np.empty(BLOCK + 1, np.uint64))


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="32 bytes, got 16"):
        Keystream(bytes(16))


def test_normals_are_the_inverse_normal_of_the_words_upper_52_bits() -> None:
    words = np.empty(1000, np.uint64)
    Keystream(KEY).fill(words)
    uniforms = [(2 * (int(w) >> 12) + 1) / 2**53 for w in words]
    np.testing.assert_array_equal(normals(Keystream(KEY), 1000), stats.norm.ppf(uniforms))


def test_normals_have_the_moments_and_the_shape_of_a_normal() -> None:
    z = SecureRandomness().normal(1_000_000)
    assert z.dtype == np.float64
    assert abs(z.mean()) < 5e-3
    assert abs(z.std() - 1) < 5e-3
    assert abs(stats.kurtosis(z)) < 0.03
    assert stats.kstest(z, "norm").pvalue > 1e-6


def test_normals_reach_further_than_float32_uniforms_allow() -> None:
    class Extreme(Keystream):
        def fill(self, words: np.ndarray) -> None:
            words[:] = [0, 2**64 - 1]

    low, high = normals(Extreme(KEY), 2)
    assert low < -8.1
    assert high == pytest.approx(-low)
    assert np.isfinite(high)


@given(first=st.integers(0, 3 * BLOCK), second=st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_consecutive_draws_continue_one_stream(first: int, second: int) -> None:
    stream = Keystream(KEY)
    parts = np.concatenate([normals(stream, first), normals(stream, second)])
    assert parts.shape == (first + second,)
    assert len(np.unique(parts)) == first + second


def test_two_instances_never_repeat_a_draw() -> None:
    first, second = SecureRandomness().normal(50_000), SecureRandomness().normal(50_000)
    assert np.intersect1d(first, second).size == 0


def test_a_forked_child_never_repeats_its_parents_stream() -> None:
    source = SecureRandomness()
    source.normal(1)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, source.normal(100).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = np.frombuffer(os.read(read, 800))
    os.close(read)
    os.close(write)
    assert theirs.shape == (100,)
    assert np.intersect1d(theirs, source.normal(100)).size == 0


def test_a_child_forked_while_a_thread_draws_is_not_blocked() -> None:
    source = SecureRandomness()
    with source._lock:
        child = os.fork()
        if child == 0:
            os._exit(0 if source.normal(10).shape == (10,) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_threads_share_an_instance_without_repeating() -> None:
    source = SecureRandomness()
    drawn: list[np.ndarray] = []
    threads = [
        threading.Thread(target=lambda: drawn.append(source.normal(20_000))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(np.unique(np.concatenate(drawn))) == 80_000


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
def test_secure_randomness_cannot_be_copied(duplicate: object) -> None:
    with pytest.raises(TypeError, match="never copied"):
        duplicate(SecureRandomness())  # type: ignore[operator]


def test_poisson_batches_have_poisson_sampling_mean_and_variance() -> None:
    # Acceptance row 5: a fixed-size or shuffled sampler has variance 0.
    source, population, rate = SecureRandomness(), 5_000, 0.05
    sizes = np.array([len(source.poisson_sample(population, rate)) for _ in range(300)])
    variance = population * rate * (1 - rate)
    assert abs(sizes.mean() - population * rate) < 5 * np.sqrt(variance / 300)
    low, high = stats.chi2.ppf([1e-6, 1 - 1e-6], df=299) / 299
    assert low < sizes.var(ddof=1) / variance < high


def test_every_index_is_kept_equally_often() -> None:
    source = SecureRandomness()
    counts = np.zeros(200)
    for _ in range(2_000):
        counts[source.poisson_sample(200, 0.25)] += 1
    assert stats.chi2.sf((((counts - 500) ** 2) / 375).sum(), df=200) > 1e-6


@given(population=st.integers(0, 3 * BLOCK), rate=st.floats(1e-300, 1.0))
@settings(max_examples=50, deadline=None)
def test_a_sample_is_sorted_distinct_and_in_range(population: int, rate: float) -> None:
    kept = poisson_sample(Keystream(KEY), population, rate)
    assert kept.dtype == np.int64
    assert np.all(np.diff(kept) > 0)
    assert kept.size == 0 or (kept[0] >= 0 and kept[-1] < population)


def test_rate_one_keeps_all_and_a_vanishing_rate_keeps_none() -> None:
    source = SecureRandomness()
    np.testing.assert_array_equal(source.poisson_sample(40_000, 1.0), np.arange(40_000))
    assert source.poisson_sample(40_000, 1e-17).size == 0


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.0001, float("nan")])
def test_a_rate_outside_0_1_is_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match="sample rate"):
        SecureRandomness().poisson_sample(10, rate)


@pytest.mark.parametrize("count", [-1, True])
def test_a_count_that_is_none_is_refused(count: int) -> None:
    with pytest.raises(ConfigError, match="count"):
        SecureRandomness().normal(count)
    with pytest.raises(ConfigError, match="count"):
        SecureRandomness().poisson_sample(count, 0.5)
