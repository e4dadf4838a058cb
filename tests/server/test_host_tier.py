from server.host_tier import HostTier


def test_the_least_recently_used_goes_first() -> None:
    tier = HostTier(3 * 1300)
    for name in "abc":
        assert tier.put(name, bytes(1000)) == 0
    assert tier.get("a") is not None
    assert tier.put("d", bytes(1000)) == 1
    assert [name for name in "abcd" if tier.get(name) is not None] == ["a", "c", "d"]
    assert len(tier) == 3
    assert tier.nbytes == tier.capacity_bytes


def test_one_too_large_for_the_tier_takes_nothing_from_the_others() -> None:
    tier = HostTier(2000)
    tier.put("a", bytes(1000))
    assert tier.put("b", bytes(1900)) == 0
    assert tier.get("b") is None
    assert tier.get("a") is not None
    assert HostTier(0).put("a", b"") == 0


def test_the_same_file_twice_is_held_once_and_dropping_gives_back() -> None:
    tier = HostTier(10_000)
    tier.put("a", bytes(1000))
    held = tier.nbytes
    tier.put("a", bytes(1000))
    assert (tier.nbytes, len(tier)) == (held, 1)
    tier.drop("a")
    tier.drop("a")
    assert (tier.nbytes, len(tier)) == (0, 0)
