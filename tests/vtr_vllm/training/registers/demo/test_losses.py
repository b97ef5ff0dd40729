import torch
from transformers import LlavaForConditionalGeneration

from vtr_vllm.demo import CHECKPOINT
from vtr_vllm.demo.model import Trace
from vtr_vllm.demo.splits import USUAL
from vtr_vllm.demo.tokenizer import FIRST_VISION
from vtr_vllm.training.demo.batches import (
    COLOR_NAMES,
    IGNORED,
    PATCH_WORDS,
    Patches,
    draw_scenes,
    label_patches,
    word_ids,
)
from vtr_vllm.training.registers.demo.losses import cells, looking_loss, naming_loss
from vtr_vllm.training.registers.demo.model import (
    END,
    RegisterModel,
    registers_of_cells,
    slots_of_cells,
)


def test_cells_hold_the_objects_of_a_scene():
    scenes, _ = draw_scenes(0, 3, USUAL)
    words, colors = cells(label_patches(scenes))
    for scene, own_words, own_colors in zip(scenes, words, colors, strict=True):
        there = {6 * o.row + o.column: (o.glyph, o.color) for o in scene.objects}
        for cell in range(36):
            word, color = int(own_words[cell]), int(own_colors[cell])
            if cell in there:
                assert (PATCH_WORDS[word], COLOR_NAMES[color]) == there[cell]
            else:
                assert (word, color) == (0, IGNORED)


def test_registers_that_name_their_cells_lose_little():
    llava = LlavaForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32)
    model = RegisterModel(llava, 36, (36,))
    scenes, _ = draw_scenes(0, 2, USUAL)
    patches = label_patches(scenes)
    words, _ = cells(patches)
    table = torch.nn.functional.normalize(model.words.detach(), dim=-1)
    named = table[word_ids(PATCH_WORDS)][words]
    _, right = naming_loss(model, named, patches, 36)
    _, wrong = naming_loss(model, named.roll(1, 1), patches, 36)
    assert right["cell_word"] == 1.0
    assert right["naming"] < wrong["naming"]
    assert slots_of_cells(36).tolist() == [0] * 36
    assert registers_of_cells(36).tolist() == list(range(36))


class _Pack:
    """One image, one question, whose target is patch 0."""

    hops = torch.zeros(2, 1, 1, 144, dtype=torch.bool)
    hops[0, 0, 0, 0] = True


def looks(place, size):
    attention = torch.zeros(1, 2, 1, size)
    attention[0, 0, 0, place] = 1.0
    attention[0, 1, 0, -1] = 1.0
    return attention


def test_a_look_at_the_register_of_the_target_counts_as_one_at_the_target():
    """With two registers, the first has the cell of patch 0."""
    nowhere, whole = looks(-1, END + 10), END + 10
    losses = {}
    for name, before, behind in [
        ("patch", looks(FIRST_VISION, whole), looks(-1, 20)),
        ("register before", looks(END, whole), looks(-1, 20)),
        ("register behind", nowhere, looks(FIRST_VISION, 20)),
        ("other register", nowhere, looks(FIRST_VISION + 1, 20)),
        ("other patch", looks(FIRST_VISION + 1, whole), looks(-1, 20)),
    ]:
        trace = Trace([], [before, behind])
        losses[name] = float(looking_loss(trace, _Pack, 2, 1))
    assert max(losses["patch"], losses["register before"], losses["register behind"]) < 0.01
    assert min(losses["other register"], losses["other patch"]) > 5


def test_an_empty_image_has_empty_cells():
    nothing = torch.zeros(1, 144, dtype=torch.long)
    words, colors = cells(Patches(torch.zeros(0), nothing, torch.full((1, 144), IGNORED)))
    assert words.sum() == 0
    assert (colors == IGNORED).all()
