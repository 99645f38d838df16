"""Common English words, so that the tokenizer and the text tower have met more than the pictures' names."""

from __future__ import annotations

__all__ = ["FILLER_WORDS"]

_TEXT = """
the of and to in is it you that was for on are with as his they be at this have from or had by word but what some we
can out other were all there when up use your how said an each she which do their time if will way about many then
them write would like so these her long make thing see him look more day could go come did sound no most people my
over know water than call first who may down side been now find any new work part take get place made live where after
back little only round man year came show every good me give our under name very through just form sentence great
think say help low line differ turn cause much mean before move right boy old too same tell does set want air well
also play small end put home read hand port large spell add even land here must big high such follow act why ask men
change went light kind off need house picture try us again animal point mother world near build self earth father
airplane automobile bird cat deer dog frog horse ship truck apple fish baby bear beaver bed bee beetle bicycle bottle
bowl boy bridge bus butterfly camel can castle caterpillar cattle chair clock cloud couch crab crocodile cup dinosaur
dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn mower leopard lion lizard lobster
man maple tree motorcycle mountain mouse mushroom oak orange orchid otter palm pear pickup truck pine plain plate
poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow wolf woman worm flower face guitar piano plane camera anchor barrel bonsai cannon chandelier
cougar dragonfly ferry garfield hawksbill hedgehog helicopter ibis inline skate joshua ketch laptop llama lotus
mandolin mayfly menorah metronome minaret nautilus octopus okapi pagoda panda pigeon pizza platypus pyramid revolver
rhino rooster saxophone scissors scorpion sneaker starfish stapler stegosaurus strawberry umbrella watch wheelchair
wrench normal tumor cell tissue lesion scan healthy disease defect scratch crack good bad product leaf grain metal
glass wood fabric cotton paper plastic kitchen office street garden beach summer winter spring autumn morning night
north south east west car van boat cow sheep goat pig chicken duck goose bread cheese milk coffee tea sugar salt rice
corn bean carrot potato tomato onion garlic
"""

FILLER_WORDS = tuple(_TEXT.split())
