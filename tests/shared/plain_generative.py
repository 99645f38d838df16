"""A turn as a user of plain transformers computes it: the model's own forward, pixels and all."""

import copy

import torch
from torch.nn import functional

from dpfpl_client.models.generative.template import FAMILIES


def plain_model(folder, dtype=torch.float32):
    """Model and image processor of a folder, loaded by transformers alone."""
    from transformers import AutoImageProcessor, AutoModelForImageTextToText

    options = {"dtype": dtype, "attn_implementation": "eager"}  # which leaves nothing out
    stock = AutoModelForImageTextToText.from_pretrained(folder, **options).eval().requires_grad_(False)
    return stock, AutoImageProcessor.from_pretrained(folder, backend="pil")


def in_double(stock):
    """The same model in double precision, against which the rounding of both others is seen."""
    return copy.deepcopy(stock[0]).double(), stock[1]


def picture_inputs(stock, model, picture):
    """What the family's own processor makes of one picture, prepared as the backbone documents it."""
    quirks, edge = FAMILIES[model.family], model.turn["square"]
    picture = picture.resize((edge, edge), 3) if edge else picture
    inputs = stock[1](
        images=[[picture]] if quirks.nested else [picture], return_tensors="pt", **quirks.processor_options
    )
    names = ("pixel_values", "pixel_attention_mask", "image_grid_thw", "image_sizes")
    exact = stock[0].dtype == torch.float64
    given = {key: inputs[key] for key in names if key in inputs}
    return {key: value.double() if exact and value.is_floating_point() else value for key, value in given.items()}


def plain_logits(stock, model, picture, context, asked, said):
    """Logits [length, vocabulary] of a whole turn through the model's own forward, pixels and all.

    ``asked`` are the ids from the context to the answer, ``said`` those of the answer so far.
    """
    theirs, begin, quirks = stock[0], list(map(int, model.layout.head)), FAMILIES[model.family]
    ids = torch.tensor([[*begin, *([begin[0]] * len(context)), *asked, *said]])
    embedded = theirs.get_input_embeddings()(ids)
    embedded = torch.cat([embedded[:, : len(begin)], context[None], embedded[:, len(begin) + len(context) :]], dim=1)
    inputs = picture_inputs(stock, model, picture)
    is_picture = ids == theirs.config.image_token_id
    if quirks.rope_index:
        positions, _ = theirs.model.get_rope_index(ids, is_picture.int(), image_grid_thw=inputs["image_grid_thw"])
        inputs["position_ids"] = positions
    if quirks.sees_ahead == "picture":
        inputs["token_type_ids"] = is_picture.long()
    if quirks.sees_ahead == "prefix":
        inputs["token_type_ids"] = torch.tensor([[0] * (ids.shape[1] - len(said)) + [1] * len(said)])
    return theirs(inputs_embeds=embedded, use_cache=False, **inputs).logits[0]


def plain_turn(stock, model, picture, context, question, answer):
    layout = model.layout
    asked, said = layout.question_ids(question), layout.answer_ids(answer)[:-1]
    return plain_logits(stock, model, picture, context, asked, said)


def plain_loss(stock, model, picture, context, question, answer):
    right = torch.tensor(model.layout.answer_ids(answer))
    logits = plain_turn(stock, model, picture, context, question, answer)
    return functional.cross_entropy(logits[-len(right) :], right)
