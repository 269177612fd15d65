import pytest

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.training.presets import changed, load_preset, preset_from, preset_names
from bluesky_cdinn.training.subjects import subject


@pytest.mark.parametrize("name", preset_names())
def test_shipped_presets_say_what_can_be_trained(name):
    preset = load_preset(name)
    assert preset.name == name
    network, _ = subject(preset.network)
    assert sum(parameter.numel() for parameter in network.parameters()) > 10_000
    assert preset.source().side == preset.network.side


def test_presets_go_through_json_and_back():
    preset = changed(load_preset("smoke"), data={"atomistic": "relaxed.npz"})
    assert preset_from(preset.as_dict(), "other") == preset


def test_a_file_changes_what_it_extends(tmp_path):
    own = tmp_path / "platinum.toml"
    own.write_text('extends = "cpu"\n[conditions]\ncounts = [100, 1e5]\n[training]\nsteps = 10\n')
    preset, base = load_preset(str(own)), load_preset("cpu")
    assert preset.name == "platinum"
    assert preset.conditions.counts == (100.0, 1e5)
    assert preset.conditions.gap == base.conditions.gap
    assert (preset.training.steps, preset.training.hours) == (10, None)
    assert preset.training.rate == base.training.rate
    further = tmp_path / "further.toml"
    further.write_text('extends = "platinum.toml"\n[data]\nbatch = 4\n')
    assert load_preset(str(further)).conditions == preset.conditions


def test_a_set_of_relaxed_crystals_that_is_not_there_is_refused(tmp_path):
    preset = changed(load_preset("smoke"), data={"atomistic": str(tmp_path / "absent")})
    with pytest.raises(InvalidInput, match=r"none at .*absent"):
        preset.source()


def test_a_circle_of_presets_is_refused(tmp_path):
    own = tmp_path / "own.toml"
    own.write_text(f'extends = "{own}"\n')
    with pytest.raises(InvalidInput, match="extend each other"):
        load_preset(str(own))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[crystal]\nvoid = 0.1", "preset own has crystal: its sections are conditions, crystals, data"),
        ("[crystals]\nviod = 0.1", r"\[crystals\] of preset own has viod: it may have .*void"),
        ("crystals = 3", r"\[crystals\] of preset own must be a table"),
        ("[crystals]\nvoid = 1.5", "void .* must be a probability, 0 to 1, it is 1.5"),
        ("[crystals]\nphase_range_rad = [3, 1]", "phase_range_rad .* must rise"),
        ("[conditions]\ncounts = [0, 1e4]", "counts .* must rise from above 0"),
        ("[conditions]\ncounts = 1e4", "counts: Input should be a valid tuple"),
        ("[views]\noversampling = [2, 3, 4]", "oversampling"),
        ("[crystals]\noversampling = [1.5, 3]", "oversampling .* must be 2 or more"),
        ("[views]\noversampling = [1.5, 3]", "oversampling .* must be 2 or more"),
        ('[network]\nside = "big"', "side: Input should be a valid integer"),
        ("[network]\nwidths = [10, 16, 16]", "is wrong: Value error, widths must be multiples of 8"),
        ("[network]\nheads = 3", "heads must share 128 channels evenly, got 3"),
        ("[data]\nlarger = [[20, 0.5]]", "larger grids must be multiples of 8"),
        ("[data]\nlarger = [[40, 0.6], [48, 0.6]]", "add up to 1 or less"),
        ("[data]\nbatch = 0", "batch must hold each"),
        ("[data]\nshare = 2", "share must be 0 to 1"),
        ("[training]\nsteps = 5\nhours = 1", "budget of steps or hours"),
        ("[training]\nsteps = -5", "steps must be above 0"),
        ('[training]\noptimiser = "sgd"', "optimiser: Input should be 'muon' or 'adamw'"),
        ("side = = 3", "must be TOML"),
    ],
)
def test_what_means_nothing_is_refused(tmp_path, text, message):
    own = tmp_path / "own.toml"
    own.write_text(text)
    with pytest.raises(InvalidInput, match=message):
        load_preset(str(own))


@pytest.mark.parametrize("name", ["tpu", "missing.toml", "../cpu"])
def test_a_preset_that_is_not_there_is_refused(name):
    with pytest.raises(InvalidInput, match="a preset must be cpu, gpu, gpu-64, paper, smoke or a TOML file"):
        load_preset(name)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"architecture": "transformer"}, "architecture must be one of cdinn.*, paper, got 'transformer'"),
        ({"side": 20}, "multiple of 8"),
        ({"architecture": "paper", "side": 64}, r"must be 32\^3"),
    ],
)
def test_networks_that_cannot_be_built_are_refused(network, message):
    with pytest.raises(InvalidInput, match=message):
        subject(changed(load_preset("cpu"), network=network).network)
