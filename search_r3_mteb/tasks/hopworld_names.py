"""Names of hopworld's entities: two words each, drawn from fixed lists that no two kinds of entity share.

A name is a first word and a second word from the two lists of its kind. The lists hold some 650 words, so a tokenizer
with one token per word covers every world up to about 30,000 documents; the names of larger worlds have a second word
made of syllables. Words are case sensitive, and every name word starts with a capital.
"""

from __future__ import annotations

import random
from functools import cache

PERSON, BOOK, COMPANY, CITY, COUNTRY = "person", "book", "company", "city", "country"

_GIVEN = """
Ada Agnes Alma Amos Anna Anton Arvid Astrid Basil Bela Berta Boris Bruno Carla Casper Celia Clara Conrad Cyrus Dagmar
Daria David Delia Dora Edgar Edith Egon Elena Elias Emil Erika Esther Eva Fabian Felix Flora Frida Gerda Gilda Gustav
Hanna Harald Hector Heidi Helga Henrik Hilda Hugo Ida Igor Ilse Ines Irma Isak Ivan Jana Jasper Joel Jonas Judith Julia
Karin Kasimir Klaus Lara Lars Lena Leon Linda Livia Lorenz Lucia Magda Marcus Marta Matilda Mirko Nadia Nils Nora
Odette Olaf Olga Oscar Otto Paula Petra Rafael Regina Roland Ruth Samuel Selma Sigrid Simon Sofia Stefan Tamara Theo
Thora Tobias Ursula Vera Viktor Walter Wilma Yara Yvonne Zelda
"""
_FAMILY = """
Abel Adler Albrecht Almqvist Amsel Bachmann Baumann Becker Bergman Bielski Blom Borg Brandt Brenner Cermak Cordes Dahl
Dietrich Dolan Drexler Eberhart Ekman Engel Erlich Falk Farkas Fiedler Fischer Forsberg Frank Gallo Geller Gerber
Glaser Granat Gruber Haas Hagen Haller Hartman Hedlund Heller Hollis Horvat Huber Jansen Jelinek Kaplan Karel Keller
Kessler Kovac Kramer Kruger Lang Larsen Laurent Lehmann Lindgren Lorentz Lukas Mahler Marek Mazur Meier Merkel Molnar
Moser Nagel Nemeth Novak Nyberg Olsen Orban Palmer Pavlik Petrov Pichler Prager Quist Rader Reuter Richter Rossi Sandor
Schreiber Seidel Sorel Stark Steiner Strand Tauber Thomsen Tichy Ullman Unger Varga Vogel Wagner Weber Weiss Werner
Winkler Wolff Zauner Zeller Zimmer
"""
_ADJECTIVES = """
Amber Ancient Ashen Autumn Bitter Blue Brave Bright Broken Burning Copper Crimson Curious Dark Distant Eager Empty
Endless Fading Fallen Final First Frozen Gentle Gilded Golden Grey Hidden Hollow Humble Idle Iron Ivory Jade Last
Lonely Lost Lucky Mellow Midnight Misty Narrow Noble Pale Patient Quiet Restless Roaming Sacred Scarlet Secret Severed
Shining Silent Silver Sleeping Solemn Stolen Sunken Tender Thirsty Tidal Twilight Unseen Velvet Violet Wandering Weary
Whispering White Wild Winter Withered Yellow
"""
_NOUNS = """
Anchor Arrow Ballad Bell Bridge Candle Canyon Castle Cathedral Chamber Clock Comet Compass Crown Dagger Desert Door
Dragon Dream Eagle Echo Ember Feather Fire Flute Forest Fountain Fox Garden Gate Ghost Glacier Harbor Harvest Hawk
Horizon Hound House Island Journey Kingdom Ladder Lantern Letter Lighthouse Lion Mask Meadow Mirror Monsoon Moon
Mountain Needle Nightingale Oak Ocean Orchard Owl Palace Path Pearl Piano Prophet Puzzle Raven River Road Sail Sea
Shadow Ship Sky Song Spear Spring Star Stone Storm Summit Sword Temple Thorn Throne Tower Valley Voyage Wall Wave Well
Whale Willow Window Wolf
"""
_COMPANY_FIRST = """
Acorn Aldus Altair Apex Aquila Argon Arbor Atlas Aurora Axiom Beacon Boreal Brevis Cardo Celadon Centum Chroma Cirrus
Cobalt Corvus Crux Cygnus Delphi Dorado Dynamo Electra Enigma Equinox Ferro Fidelis Fulcrum Gemini Halcyon Helios Heron
Hydra Ignis Indigo Juno Kestrel Kinetic Lumen Lynx Magnus Meridian Merlin Monolith Nexus Nimbus Nova Oberon Omega Onyx
Optima Orbis Orion Osprey Paragon Pegasus Pinnacle Polaris Primus Quanta Quartz Radix Regulus Sable Sigma Solaris
Stellar Summa Tangent Tempus Terra Titan Triton Umbra Vega Vertex Vulcan Zenith Zephyr
"""
_COMPANY_SECOND = """
Agency Alliance Associates Brewery Brothers Capital Chemicals Collective Consortium Cooperative Corporation Dynamics
Energy Engineering Enterprises Foods Foundry Games Glassworks Group Holdings Industries Instruments Laboratories
Logistics Media Metals Motors Optics Partners Pharma Pictures Press Publishing Robotics Shipping Software Steelworks
Systems Textiles
"""
_CITY_FIRST = """
Bad Bay Black Castel Cold Cross Deep Dry East Fort Grand Great Green High Holy Inner Little Long Low Mill Mount New
North Old Outer Port Red Saint Salt South Stony Upper Vale West
"""
_CITY_SECOND = """
Adelmar Alnwick Arkholm Barrow Belgar Benholm Bolvar Brackley Brynn Calder Carmont Corvia Crestwick Dalby Darrow
Denmoor Dorvale Dunmore Eastmere Elbrook Elsing Fairwick Farholm Fenwick Garrick Glenrath Gormley Hadley Halden Harwick
Hexley Holmgard Iverness Jarrow Kelby Kendrick Kirkmoor Lanark Ledbury Lowick Lundby Malden Marwick Melby Merrow
Morvane Norvik Oakhurst Ormsby Osmund Penrith Pelgrave Quorley Ravenna Redmoor Rosmar Rothby Sandvik Selwick Skarby
Stanmoor Storvik Tarnby Thornby Tolgate Torvald Ulverby Vandmoor Varholm Veska Wadby Welmar Westrup Whitby Wickmar
Wolvern Yarmouth Yelland Zandvoort Zelmar
"""
_COUNTRY_FIRST = """
Central Coastal Eastern Federal Free Greater Imperial Lesser Lower Maritime Northern Royal Southern Sovereign United
Western
"""
_COUNTRY_SECOND = """
Abravia Aldoria Ambria Andovia Arcasia Astoria Balvonia Belmaria Borduria Calvania Carpania Castovia Cordonia Dalmoria
Delvania Doravia Drakonia Elbonia Estavia Fenoria Florinia Galdovia Gardaria Gelmania Halvania Helmaria Illyria Istoria
Jarvonia Kalvaria Karvonia Kelmania Latveria Lodoria Lomaria Macovia Maldonia Moravia Narvonia Nevaria Norlandia
Olmaria Orsinia Palvonia Parmaria Qumaria Ravonia Ruritania Saldovia Sarmatia Silvania Solaria Tavaria Tolvania Ulmaria
Valdoria Vespania Wolmaria Yavonia Zubrovia
"""
_LISTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    PERSON: (tuple(_GIVEN.split()), tuple(_FAMILY.split())),
    BOOK: (tuple(_ADJECTIVES.split()), tuple(_NOUNS.split())),
    COMPANY: (tuple(_COMPANY_FIRST.split()), tuple(_COMPANY_SECOND.split())),
    CITY: (tuple(_CITY_FIRST.split()), tuple(_CITY_SECOND.split())),
    COUNTRY: (tuple(_COUNTRY_FIRST.split()), tuple(_COUNTRY_SECOND.split())),
}
# Endings keep the syllable words of two kinds apart, and apart from the lists (a test holds both).
_ENDINGS = {PERSON: "sonn", BOOK: "lyth", COMPANY: "tekk", CITY: "burgh", COUNTRY: "landt"}
_SYLLABLES = tuple(consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou")


def name_words() -> list[str]:
    """Every word of the default lists, sorted. No word stands in two lists."""
    return sorted(word for lists in _LISTS.values() for words in lists for word in words)


@cache
def _pair_order(kind: str, seed: int) -> tuple[int, ...]:
    """The order in which the pairs of the two lists of one kind are used up."""
    first, second = _LISTS[kind]
    order = list(range(len(first) * len(second)))
    random.Random(f"hopworld names {kind} {seed}").shuffle(order)
    return tuple(order)


def _syllable_word(kind: str, number: int) -> str:
    """The `number`-th made-up word of a kind: two or more syllables and the kind's ending."""
    syllables: list[str] = []
    while number or len(syllables) < 2:
        number, digit = divmod(number, len(_SYLLABLES))
        syllables.append(_SYLLABLES[digit])
    return ("".join(syllables) + _ENDINGS[kind]).capitalize()


def entity_name(kind: str, number: int, seed: int) -> str:
    """The name of the `number`-th entity of a kind in the world of a seed: two words, unique over kinds and numbers."""
    first, second = _LISTS[kind]
    order = _pair_order(kind, seed)
    if number < len(order):
        pair = order[number]
        return f"{first[pair // len(second)]} {second[pair % len(second)]}"
    extra = number - len(order)
    return f"{first[extra % len(first)]} {_syllable_word(kind, extra // len(first))}"
