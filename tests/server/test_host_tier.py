from server.host_tier import Held, HostTier


def test_the_least_recently_used_goes_first() -> None:
    tier: HostTier[str] = HostTier(3 * 1500)
    for name in "abc":
        assert tier.put(name, Held(bytes(1000))) == 0
    assert tier.get("a") is not None
    assert tier.put("d", Held(bytes(1000))) == 1
    assert [name for name in "abcd" if tier.get(name) is not None] == ["a", "c", "d"]
    assert len(tier) == 3
    assert tier.nbytes == tier.capacity_bytes


def test_one_too_large_for_the_tier_takes_nothing_from_the_others() -> None:
    tier: HostTier[str] = HostTier(2000)
    tier.put("a", Held(bytes(1000)))
    assert tier.put("b", Held(bytes(1900))) == 0
    assert tier.get("b") is None
    assert tier.get("a") is not None
    assert HostTier[str](0).put("a", Held(b"")) == 0


def test_the_same_file_twice_is_held_once_and_dropping_gives_back() -> None:
    tier: HostTier[str] = HostTier(10_000)
    tier.put("a", Held(bytes(1000)))
    held = tier.nbytes
    tier.put("a", Held(bytes(1000)))
    assert (tier.nbytes, len(tier)) == (held, 1)
    tier.drop("a")
    tier.drop("a")
    assert (tier.nbytes, len(tier)) == (0, 0)


def test_what_was_decoded_counts_too() -> None:
    tier: HostTier[str] = HostTier(10_000)
    tier.put("a", Held(bytes(1000)))
    bare = tier.nbytes
    tier.put("a", Held(bytes(1000), "decoded", 700))
    assert tier.nbytes == bare + 700
    held = tier.get("a")
    assert held is not None
    assert held.decoded == "decoded"
