"""The small world the stories take place in: names, kinds of character, places, things, and their facts.

This module holds data only.  Every fact that two sentences of one story must agree on (where a thing can
hide, what breaks and how it is mended, which food lacks which ingredient) is kept together in one record,
so that a plot picks the record once and cannot contradict itself.  It makes no text; see generate.py.
"""

from __future__ import annotations

from typing import NamedTuple

GIRLS = """
Lily Mia Emma Anna Rosie Lucy Ella Zoe Molly Grace Ruby Sara Nora Ivy Clara Alice Daisy Hannah Maya Ava
Chloe Sophie Kate Jane Amy Bella Ellie Poppy Holly Julia Leah Lena Luna Maria Nina Olive Penny Rita Sally
Tina Wendy Violet Abby Betty Carla Dora Edith Flora Gina Helen Iris Jenny Kira Laura Mary Nancy Paula Rachel
Susan Tara Vera Willa Yara Zara Martha Esther Freya Greta Heidi Ida Josie Katie Lola Mabel Nell Opal Peggy
Rose Stella Thea Una Vicky Winnie Amber Beth Cora Delia Elsa Fern Gwen Hope Jill June Kim Lisa May Meg Naomi
Orla Pam Robin Sue Tilly Uma Anya Bonnie Celia Diana Eva Faye Gloria
""".split()
BOYS = """
Tom Ben Max Sam Jack Leo Tim Finn Noah Oliver Henry Jake Luke Adam Alex Theo Charlie Daniel Eli Felix George
Harry Ian Jacob Kevin Liam Mark Nick Oscar Paul Peter Ray Simon Toby Victor Will Zack Andy Billy Carl David
Ethan Fred Gus Hugo Isaac James Kyle Lucas Milo Ned Owen Pablo Quinn Ravi Seth Ted Umar Vince Walter Arthur
Bruno Caleb Dan Edgar Frank Gary Hans Ivan Joe Karl Louis Mateo Nate Otto Pierre Ralph Stan Tony Wes Amir Bob
Cody Dylan Emil Floyd Glen Herman Jasper Ken Lars Miles Nils Omar Percy Roy Sven Tyler Albert Chris Dean Eric
Gabriel Jonah Kai Levi Martin Rufus Samir Tobias
""".split()
# Names of talking animals and of magical beings, for either pronoun.
ANIMAL_NAMES = """
Pip Hazel Bramble Clover Nutmeg Biscuit Pepper Thimble Pebble Maple Acorn Willow Bumble Fuzzy Ginger Honey
Muffin Pumpkin Sunny Twig Whiskers Cocoa Button Cricket Dusty Fidget Fluff Juniper Kiki Lulu Mimi Momo
Nibbles Nibs Olly Patches Peanut Pickle Poppet Puddle Rusty Scout Shadow Sniff Snowy Socks Speckle Sprout
Tansy Teasel Toto Tumble Waffle Wiggle Bobo Bristle Chip Dot Flip Hop Jumper Mossy Noodle Oakley Pogo Quill
Ripple Skip Tuft Zippy
""".split()
MAGIC_NAMES = """
Ember Spark Glimmer Twinkle Blaze Star Misty Zig Zag Bolt Cog Sprocket Flicker Flame Dazzle Sparkle Moonbeam
Frost Comet Cinder Smoky Puff Fizz Glow Shimmer Gleam Rumble Boomer Nimbus Pixel Gizmo Beep Whirl Starlight
Dewdrop Thistle Tinker Merry Bellflower Orin Elwin Fay Zuzu Ziggy Tock
""".split()
PET_NAMES = """
Rex Spot Buddy Lucky Fluffy Duke Coco Rover Bingo Teddy Snowball Oreo Mittens Tiger Cookie Sandy Pepper Bear
Smokey Daisy Scamp Bandit Ziggy Bubbles Jelly Domino Tango Marble Fudge Toffee
""".split()

TRAITS = """
kind curious brave cheerful clever gentle playful quiet shy friendly careful happy busy polite
""".split()
SIZES = "little small young tiny".split()


class Kind(NamedTuple):
    """A kind of main character: what it is called, where it lives, what it looks like."""

    noun: str
    homes: tuple[str, ...]
    looks: tuple[str, ...]
    hands: str
    regions: tuple[str, ...]


ALL = ("village", "town", "seaside", "forest", "farm", "hills")
WILD = ("forest", "farm", "hills", "village")
CHILD_HOMES = (
    "a little house with a red door", "a yellow house with a big garden", "a small white house",
        "a cozy cottage",
    "a tall brick house", "a blue house with round windows", "a house with a green roof",
        "a small stone house",
    "an old house with a squeaky gate",
)
CHILD_LOOKS = (
    "curly brown hair", "long black hair", "short red hair", "bright green eyes", "big brown eyes",
        "a big smile",
    "freckles on {his} nose", "messy yellow hair", "rosy cheeks", "a pair of round glasses",
        "a missing front tooth",
)
GIRL = Kind("girl", CHILD_HOMES, CHILD_LOOKS + ("two long braids", "a ribbon in her hair"), "hands", ALL)
BOY = Kind("boy", CHILD_HOMES, CHILD_LOOKS + ("a blue cap on his head",), "hands", ALL)

ANIMALS = (
    Kind("rabbit", ("a cozy burrow", "a warm burrow under an old oak tree", "a neat little burrow"),
         ("long soft ears", "a fluffy white tail", "soft brown fur", "a pink twitchy nose"), "paws", WILD),
    Kind("fox", ("a snug den", "a den under a big rock"), ("bright red fur", "a bushy tail",
        "clever yellow eyes"),
         "paws", WILD),
    Kind("bear", ("a warm cave", "a cave with a mossy roof"), ("thick brown fur", "big round ears",
        "a round tummy"),
         "paws", ("forest", "hills")),
    Kind("mouse", ("a tiny house inside a hollow log", "a tiny hole in a wall", "an old boot"),
         ("soft grey fur", "a long thin tail", "tiny whiskers"), "paws", WILD),
    Kind("squirrel", ("a hollow tree", "a nest high in an oak tree"), ("a big fluffy tail",
        "quick little feet"),
         "paws", ("forest", "village")),
    Kind("hedgehog", ("a pile of dry leaves", "a cozy nest under a hedge"), ("pointy little spikes",
        "a tiny black nose"),
         "paws", WILD),
    Kind("badger", ("a deep burrow", "a tidy burrow with three rooms"), ("black and white stripes",
        "strong claws"),
         "paws", ("forest", "farm", "hills")),
    Kind("otter", ("a den by the water", "a snug den of sticks"), ("smooth wet fur", "long whiskers"), "paws",
         ("forest", "seaside", "village")),
    Kind("beaver", ("a lodge made of sticks", "a round wooden lodge"), ("a flat tail", "two big front teeth"),
        "paws",
         ("forest", "hills")),
    Kind("kitten", ("a basket by the fire", "a warm basket in a kitchen"), ("soft striped fur",
        "bright green eyes",
         "white paws"), "paws", ("village", "town", "farm")),
    Kind("puppy", ("a red dog house", "a wooden dog house"), ("floppy ears", "a waggy tail", "brown spots"),
        "paws",
         ("village", "town", "farm", "seaside")),
    Kind("raccoon", ("a hollow stump", "a den in a hollow tree"), ("a striped tail",
        "a black mask around {his} eyes"),
         "paws", ("forest", "town")),
    Kind("mole", ("a long dark tunnel", "a tunnel with a round door"), ("velvet fur", "tiny eyes"), "paws",
         ("farm", "forest", "village")),
    Kind("lamb", ("a barn full of hay", "a warm stable"), ("soft white wool", "black legs"), "hooves",
        ("farm", "hills")),
    Kind("pony", ("a stable with a wide door", "a warm barn"), ("a long mane", "a white star on {his} nose"),
        "hooves",
         ("farm", "hills", "village")),
    Kind("pig", ("a muddy pen", "a small brick house"), ("a curly tail", "pink ears"), "feet", ("farm",
        "village")),
    Kind("goat", ("a shed on a hill", "a wooden shed"), ("a short beard", "two small horns"), "hooves",
         ("farm", "hills")),
    Kind("turtle", ("a sandy nest by the water", "a quiet hole near the water"), ("a round green shell",
         "a shiny shell"), "feet", ("forest", "seaside", "village")),
    Kind("frog", ("a mossy hole by the water", "a house made of reeds"), ("smooth green skin",
        "big round eyes"),
         "feet", ("forest", "farm", "village")),
    Kind("duckling", ("a nest of reeds", "a soft nest by the water"), ("fluffy yellow feathers",
        "a tiny orange beak"),
         "wings", ("farm", "village", "forest")),
    Kind("chick", ("a warm coop", "a nest of straw"), ("soft yellow feathers", "a loud little cheep"),
        "wings",
         ("farm",)),
    Kind("deer", ("a quiet glade", "a bed of ferns"), ("white spots", "long thin legs"), "hooves", ("forest",
        "hills")),
    Kind("panda", ("a cave near the bamboo", "a quiet cave"), ("black and white fur", "round black ears"),
        "paws",
         ("forest", "hills")),
    Kind("cat", ("a basket by the fire", "a shed full of soft hay"), ("shiny black fur", "long whiskers"),
        "paws",
         ("village", "town", "farm", "seaside")),
)
MAGIC = (
    Kind("dragon", ("a warm cave", "a cave full of shiny stones", "a tall tower"),
         ("shiny green scales", "soft purple wings", "golden eyes", "bright red scales"), "claws",
         ("hills", "forest", "village", "seaside")),
    Kind("robot", ("a workshop full of wires", "a little tin house"), ("two round lights for eyes",
        "squeaky wheels",
         "a shiny silver body"), "hands", ("town", "village", "hills")),
    Kind("fairy", ("a house inside a mushroom", "a tiny house in a rose bush"), ("thin silver wings",
         "a dress made of petals"), "hands", ("forest", "village", "farm")),
    Kind("elf", ("a tree house", "a house with a leaf roof"), ("pointy ears", "a tall green hat"), "hands",
         ("forest", "hills")),
    Kind("gnome", ("a house under a hill", "a house made of stones"), ("a pointy red hat", "big black boots"),
        "hands",
         ("forest", "farm", "hills")),
    Kind("giant", ("a house as big as a barn", "a huge stone house"), ("very big feet", "a deep, soft voice"),
        "hands",
         ("hills", "village")),
    Kind("unicorn", ("a meadow of clover", "a bright stable"), ("a silver horn", "a rainbow mane"), "hooves",
         ("forest", "hills")),
    Kind("wizard", ("a crooked tower", "a house full of books"), ("a long blue coat",
        "a tall hat with stars"),
         "hands", ("village", "hills", "town")),
    Kind("monster", ("a cave behind a waterfall", "an old empty barn"), ("fuzzy blue fur", "one big tooth"),
        "paws",
         ("forest", "hills", "village")),
)

PETS = (
    ("dog", "barked [happily|loudly|twice]"), ("puppy", "wagged and jumped around"), ("cat", "purred softly"),
    ("kitten", "gave a happy meow"), ("pony", "neighed happily"), ("parrot", "flapped and squawked"),
    ("hamster", "wiggled and squeaked"), ("duck", "quacked [happily|loudly]"),
)

HOBBIES = (
    ("sing songs", "singing songs"), ("draw pictures", "drawing pictures"), ("paint", "painting"),
    ("climb trees", "climbing trees"), ("look at the clouds", "looking at the clouds"),
    ("collect smooth stones", "collecting smooth stones"), ("run in the grass", "running in the grass"),
    ("tell funny jokes", "telling funny jokes"), ("listen to stories", "listening to stories"),
    ("count the stars", "counting the stars"), ("dance", "dancing"), ("pick flowers", "picking flowers"),
    ("jump in puddles", "jumping in puddles"), ("play hide and seek", "playing hide and seek"),
    ("explore new places", "exploring new places"), ("help others", "helping others"),
    ("watch the birds", "watching the birds"), ("make paper boats", "making paper boats"),
    ("eat berries", "eating berries"), ("play in the sun", "playing in the sun"),
    ("ask questions", "asking questions"), ("roll down the hill", "rolling down the hill"),
    ("play games", "playing games"), ("learn new things", "learning new things"),
    ("look for bugs", "looking for bugs"), ("hum little tunes", "humming little tunes"),
)

# How a region is spoken of: "lived in a cozy burrow, <area>".
AREAS = {
    "village": ("in a small village", "in a quiet village", "in a little village between two hills",
                "in a small village by a river", "in a sunny village"),
    "town": ("in a busy town", "in a big town", "in a little town", "in a town with many bright shops",
             "in a noisy city"),
    "seaside": ("by the sea", "near the beach", "on a small island", "in a little town by the sea",
                "next to the blue sea"),
    "forest": ("in a green forest", "deep in the forest", "at the edge of a big forest",
        "in the middle of the woods",
               "in a quiet forest"),
    "farm": ("on a farm", "on a small farm", "on a big, busy farm", "on a farm with green fields",
             "at the edge of a wide field"),
    "hills": ("high in the mountains", "on a green hill", "in a hidden valley",
        "at the foot of a tall mountain",
              "on top of a windy hill"),
}


class Place(NamedTuple):
    """A place to go: `to` after "went", `at` after "played", spots where things hide, a high spot, a view."""

    to: str
    at: str
    spots: tuple[str, ...]
    high: tuple[str, ...]
    views: tuple[str, ...]


TREES = ("an old oak tree", "a tall pine tree", "an apple tree", "a big tree")
PLACES = {
    "village": (
        Place("to the meadow", "in the meadow", ("under a big leaf", "in the tall grass",
            "behind a grey rock",
              "next to an old fence", "inside a hollow log", "beside a rabbit hole"), TREES,
              ("butterflies danced over the flowers", "bees hummed in the clover",
                  "the tall grass moved like waves")),
        Place("to the village square", "in the village square", ("under a wooden bench",
            "behind the fountain",
              "next to the well", "under a market cart", "beside a pile of baskets"), ("the old clock tower",
              "a tall chestnut tree", "the roof of the bakery"), ("people sold bread and flowers",
              "the fountain splashed and sparkled", "the smell of fresh bread filled the air")),
        Place("to the river", "by the river", ("under the little bridge", "between two stones",
            "in the reeds",
              "behind a fallen tree", "in the soft mud"), ("a tall willow tree", "a big tree"),
              ("little fish swam in the clear water", "the water splashed over the stones",
               "a green frog sat on a rock")),
        Place("to the orchard", "in the orchard", ("under an apple tree", "behind a ladder",
            "in an empty basket",
              "next to a stone wall", "in a heap of leaves"), ("an apple tree", "a tall pear tree"),
              ("red apples shone on the trees", "birds sang on every branch")),
    ),
    "town": (
        Place("to the park", "in the park", ("under a bench", "behind the slide", "in the sandbox",
            "beside the pond",
              "in the bushes", "next to a trash can"), TREES, ("ducks swam on the pond",
              "children laughed on the swings", "squirrels ran up and down the trees")),
        Place("to the playground", "at the playground", ("under the slide", "behind the swings",
            "in the sandbox",
              "inside the tunnel", "next to the water fountain"), ("the top of the climbing frame",
                  "a tall tree"),
              ("the swings went up and down", "the slide shone in the light")),
        Place("to the market", "at the market", ("under a table of fruit", "behind a flower stand",
              "between two crates", "beside a barrel of fish", "in a basket of onions"),
                  ("the roof of a stall",
              "a tall lamp post"), ("there was fruit in every color", "people talked and laughed")),
        Place("to the library garden", "in the library garden", ("under a stone bench", "behind a rose bush",
              "between two flower pots", "beside a statue", "on the back steps"), ("a tall tree",
              "the arm of a statue"), ("people sat and read quietly", "roses grew along the wall")),
    ),
    "seaside": (
        Place("to the beach", "on the beach", ("under a heap of seaweed", "behind a big rock",
            "inside a small cave",
              "in a tide pool", "beside an old boat", "in the warm sand"), ("a palm tree",
                  "the top of a tall rock"),
              ("the waves rolled in and out", "white birds flew over the sea", "little crabs ran over the "
                                                                               "sand")),
        Place("to the harbor", "at the harbor", ("under a fishing net", "behind a stack of boxes",
            "inside a bucket",
              "beside a coil of rope", "in a small boat"), ("the mast of a ship", "a tall pole"),
              ("boats rocked on the water", "sailors sang and worked")),
        Place("to the lighthouse", "near the lighthouse", ("behind the door", "under the stairs",
            "between the rocks",
              "beside a wooden bench", "in the grass"), ("the lighthouse railing", "a bent old tree"),
              ("the sea wind smelled of salt", "the white tower reached for the sky")),
    ),
    "forest": (
        Place("to the clearing", "in the clearing", ("under a mushroom", "behind a mossy stump",
            "in a pile of leaves",
              "inside a hollow log", "between the roots of an oak tree"), TREES,
              ("golden light fell through the leaves", "birds sang in the trees", "ferns swayed softly")),
        Place("to the stream", "by the stream", ("under a flat stone", "in the moss", "behind a fallen tree",
              "among the reeds", "on a tiny island"), ("a tall willow tree", "an old oak tree"),
              ("the water sang over the stones", "blue dragonflies flew over the water")),
        Place("to the berry patch", "in the berry patch", ("under a berry bush", "behind a round rock",
              "in a clump of ferns", "inside an old nest", "beside an ant hill"), ("a tall pine tree",
                  "a big tree"),
              ("ripe berries hung from every bush", "a snail crept along a leaf")),
        Place("to the big pond", "by the big pond", ("under a lily pad", "in the mud", "behind the cattails",
              "beside a grey rock", "inside a hollow log"), ("a crooked tree", "a tall willow tree"),
              ("frogs sat on the lily pads", "the water was as smooth as glass")),
    ),
    "farm": (
        Place("to the barn", "by the barn", ("under a heap of hay", "behind a milk bucket",
            "inside an old boot",
              "beside the tractor", "in a feed sack"), ("the barn roof", "a tall stack of hay"),
              ("hens pecked at the ground", "the cows mooed softly", "the hay smelled sweet")),
        Place("to the pumpkin field", "in the pumpkin field", ("under a big leaf", "between two pumpkins",
              "behind the scarecrow", "beside the fence", "in a wheelbarrow"), ("the scarecrow's hat",
              "a tall maple tree"), ("fat orange pumpkins sat in rows", "the scarecrow waved in the breeze")),
        Place("to the duck pond", "by the duck pond", ("in the reeds", "under an old boat", "behind a bucket",
              "in the soft mud", "beside the gate"), ("a tall willow tree", "a big tree"),
              ("ducks paddled in a row", "the pond shone like a mirror")),
        Place("to the orchard", "in the orchard", ("under an apple tree", "behind a ladder",
            "in an empty basket",
              "next to a stone wall", "in a heap of leaves"), ("an apple tree", "a tall plum tree"),
              ("red apples shone on the trees", "bees hummed from flower to flower")),
    ),
    "hills": (
        Place("to the top of the hill", "on top of the hill", ("under a flat rock", "behind a thorn bush",
              "in the tall grass", "inside a small cave", "beside a goat path"), ("a lonely pine tree",
              "a tall rock"), ("the whole valley lay below", "the grass bent in the breeze")),
        Place("to the lake", "by the lake", ("under an old boat", "between two stones", "in the reeds",
              "behind a log", "in the wet sand"), ("a tall fir tree", "a big tree"),
              ("the lake was deep and blue", "silver fish jumped out of the water")),
        Place("to the waterfall", "near the waterfall", ("behind a wet rock", "under a fern",
            "in a patch of moss",
              "inside a small cave", "beside a blue flower"), ("a tall fir tree", "a high ledge"),
              ("a little rainbow hung in the spray", "the water roared and sparkled")),
        Place("to the flower valley", "in the flower valley", ("under a broad leaf", "behind a white rock",
              "among the bluebells", "beside a tiny stream", "inside a hollow tree"), ("a lonely birch tree",
              "a tall pine tree"), ("flowers of every color grew there", "butterflies flew up in a cloud")),
    ),
}

COLORS = "red blue green yellow orange purple pink white golden silver brown black".split()
SIZED = "little small big tiny".split()


class Thing(NamedTuple):
    """A thing one can own; `mats` are words for what it is like, `tags` say what can happen to it."""

    noun: str
    mats: tuple[str, ...]
    tags: str


WOOL, WOOD, METAL = ("woolly", "warm", "soft", "striped"), ("wooden", "painted", "shiny"), ("shiny", "old",
    "brass")
THINGS = (
    Thing("ball", ("bouncy", "striped", "rubber", "shiny"), "toy throw"),
    Thing("kite", ("paper", "striped", "long-tailed"), "toy light throw"),
    Thing("teddy bear", ("soft", "fluffy", "old"), "toy soft"), Thing("doll", ("rag", "wooden", "pretty"),
        "toy"),
    Thing("toy boat", WOOD, "toy"), Thing("toy train", WOOD, "toy"), Thing("toy car", ("shiny", "fast",
        "tin"), "toy"),
    Thing("drum", ("loud", "round", "tin"), "toy"), Thing("flute", WOOD, "keep"), Thing("whistle", METAL,
        "keep"),
    Thing("bell", METAL, "keep"), Thing("key", METAL, "keep"), Thing("button", ("shiny", "round"), "keep"),
    Thing("marble", ("glass", "round", "shiny"), "keep toy"), Thing("coin", METAL, "keep"),
    Thing("feather", ("long", "soft", "fluffy"), "keep light"), Thing("shell", ("smooth", "curly", "shiny"),
        "keep"),
    Thing("hat", ("straw", "pointy", "floppy"), "wear light throw"), Thing("cap", ("striped", "new"),
        "wear light throw"),
    Thing("scarf", WOOL, "wear light soft"), Thing("mitten", WOOL, "wear"), Thing("ribbon", ("long", "shiny"),
        "wear light"),
    Thing("boot", ("rubber", "shiny", "muddy"), "wear"), Thing("blanket", WOOL, "soft"),
    Thing("balloon", ("round", "shiny"), "toy light"), Thing("paper plane", ("fast", "folded"),
        "toy light throw"),
    Thing("book", ("old", "thick", "picture"), "keep"), Thing("pencil", ("sharp", "new"), "keep"),
    Thing("paintbrush", ("thin", "soft", "new"), "keep"), Thing("lantern", METAL, "keep"),
    Thing("spoon", ("wooden", "shiny"), "keep"), Thing("watch", METAL, "keep"), Thing("ring", METAL, "keep"),
    Thing("necklace", ("shiny", "pretty", "shell"), "keep wear"), Thing("spinning top", WOOD, "toy"),
    Thing("music box", WOOD, "keep toy"), Thing("puppet", ("funny", "wooden"), "toy"),
    Thing("toy horse", WOOD, "toy"), Thing("toy rabbit", ("soft", "fluffy"), "toy soft"),
    Thing("basket", ("straw", "round"), "keep"), Thing("umbrella", ("striped", "spotted"), "light keep"),
    Thing("backpack", ("striped", "new"), "keep"), Thing("yo-yo", WOOD, "toy"), Thing("crayon", ("new",
        "fat"), "keep"),
    Thing("jump rope", ("long", "striped"), "toy"), Thing("bucket", ("tin", "shiny"), "toy keep"),
    Thing("toy robot", ("tin", "shiny"), "toy"), Thing("magnifying glass", ("round", "old"), "keep"),
    Thing("pillow", WOOL, "soft"), Thing("flag", ("paper", "striped"), "light"),
    Thing("top hat", ("tall", "shiny"), "wear light"), Thing("compass", METAL, "keep"),
)

# Thing that breaks: (adjectives, noun, how it broke, the part now wrong, how it is mended, the tool).
BROKEN = (
    ("wooden", "wagon", "one wheel came off", "the wheel was loose", "put the wheel back on",
        "a small hammer"),
    ("red", "wagon", "it hit a stone and a wheel fell off", "the wheel was on the ground",
        "screwed the wheel on tight",
     "a screwdriver"),
    ("paper", "kite", "it caught on a branch and tore", "there was a long rip in it",
        "covered the rip with tape",
     "a roll of tape"),
    ("toy", "boat", "its mast snapped in half", "the mast was in two pieces", "glued the mast together",
     "a pot of glue"),
    ("little", "chair", "one leg cracked", "the leg wobbled", "fixed a new leg to it", "a hammer and nails"),
    ("music", "box", "it fell and stopped playing", "a tiny spring was loose", "pushed the spring back in "
                                                                               "place",
     "a thin screwdriver"),
    ("tea", "cup", "its handle broke off", "the handle lay on the floor", "stuck the handle back on",
        "a pot of glue"),
    ("garden", "gate", "it came off its hinge", "the hinge was bent", "made the hinge straight again",
        "a big hammer"),
    ("rag", "doll", "its arm came off", "the thread was torn", "sewed the arm back on",
        "a needle and thread"),
    ("toy", "rabbit", "its ear ripped", "white stuffing fell out", "sewed the ear back on",
        "a needle and thread"),
    ("rope", "swing", "the rope snapped", "the seat hung on one side", "tied a new rope to the branch",
     "a long, strong rope"),
    ("blue", "bicycle", "the chain came off", "the wheels did not turn", "put the chain back on", "a wrench"),
    ("old", "clock", "it fell off the shelf and stopped", "its hands did not move",
        "turned a tiny gear inside it",
     "a tiny wrench"),
    ("striped", "umbrella", "the wind turned it inside out", "one side was bent", "bent it back into shape",
     "a piece of wire"),
    ("wooden", "drum", "its top ripped", "there was a hole in the top", "put a new skin over the top",
     "a piece of leather"),
    ("bird", "house", "it fell from the tree", "its roof was cracked", "nailed on a new roof",
        "a hammer and nails"),
    ("toy", "train", "it fell down the stairs", "one wheel was missing", "carved a new wheel",
        "a piece of wood"),
    ("glass", "lantern", "it would not shine", "the wick was too short", "put a new wick inside",
        "a bit of string"),
)

# Skill: (do it, doing it, what goes wrong twice, advice, success, kinds that cannot want it).
SKILLS = (
    ("ride a bike", "riding a bike", "the bike wobbled and fell over", "{he} went two feet and tipped into a "
                                                                       "bush",
     "Look ahead, not at your feet", "rode all the way down the path", "animal magic"),
    ("swim", "swimming", "water went up {his} nose", "{he} sank and had to stand up, coughing",
     "Take a deep breath and kick slowly", "swam from one side to the other", "turtle frog otter duckling "
                                                                              "beaver robot"),
    ("whistle", "whistling", "only air came out", "it sounded like a sad old kettle",
     "Make your mouth small and blow softly", "whistled a clear, sweet tune", "robot duckling chick"),
    ("skip rope", "skipping rope", "the rope caught on {his} feet", "{he} jumped too late and got tangled up",
     "Count to three and then jump", "jumped twenty times in a row", "turtle snake"),
    ("juggle", "juggling", "all the balls fell on the ground", "one ball landed on {his} head",
     "Start with only one ball", "kept three balls in the air", "pony lamb goat deer unicorn duckling chick "
                                                                "turtle"),
    ("skate on the ice", "skating on the ice", "{his} feet slid in two directions",
        "{he} sat down hard on the cold ice",
     "Bend your knees and take tiny steps", "glided across the ice in a big circle", ""),
    ("dance", "dancing", "{he} got mixed up and turned the wrong way", "{he} tripped over {his} own feet",
     "Listen to the music first", "danced a whole song without a mistake", ""),
    ("paint a picture", "painting a picture", "the colors ran together and turned brown",
        "the paper got too wet and tore",
     "Let each color dry before you add the next", "painted a bright picture of a garden", ""),
    ("tie a bow", "tying a bow", "the bow came apart", "the string turned into a big knot",
     "Make two loops like bunny ears", "tied a neat bow",
         "pony lamb goat deer unicorn duckling chick turtle"),
    ("play the flute", "playing the flute", "it made a squeaky sound", "the notes came out all wrong",
     "Play one note at a time", "played a lovely song", "pony lamb goat deer unicorn duckling chick turtle"),
    ("read", "reading", "the letters looked like little bugs", "{he} forgot the sound of one letter",
     "Say one sound at a time", "read a whole page out loud", ""),
    ("sing high notes", "singing high notes", "{his} voice cracked", "it came out as a squeak",
     "Stand tall and breathe from your tummy", "sang the highest note of all", "robot"),
    ("do a cartwheel", "doing a cartwheel", "{he} landed on {his} back", "{he} rolled into a heap",
     "Keep your legs straight", "did a perfect cartwheel",
         "pony lamb goat deer unicorn duckling chick turtle"),
    ("climb a tree", "climbing a tree", "{he} slid back down", "{he} could not reach the first branch",
     "Look for the next safe place before you move", "climbed up to the third branch",
     "squirrel pony lamb deer unicorn duckling chick turtle giant raccoon kitten cat panda"),
    ("fly a kite", "flying a kite", "the kite dropped to the ground", "the string got tangled around a bush",
     "Wait for the wind and then run", "sent the kite high into the sky", ""),
    ("fly", "flying", "{he} fell into a bush", "{he} flapped too fast and spun around",
     "Spread your wings and trust the wind", "flew over the treetops", "girl boy animal robot elf gnome "
                                                                       "giant unicorn wizard monster"),
    ("breathe fire", "breathing fire", "only a puff of grey smoke came out", "{he} got the hiccups",
     "Think of something warm and blow slowly", "blew a small, bright flame", "notdragon"),
    ("do magic", "doing magic", "{his} hat turned into a fish", "there was a loud pop and nothing else",
     "Say the words slowly and believe in them", "turned a stone into a flower", "notwizard"),
)

# Build: (what, of what, why it fails, what the helper brings, how that helps, what they do with it).
BUILDS = (
    ("a tree house", "old boards", "the boards kept slipping", "a box of nails", "hold the boards in place",
     "sat inside and looked out over the treetops"),
    ("a sand castle", "wet sand", "a wave washed it away", "a big shovel", "build it farther from the water",
     "put a tiny flag on the highest tower"),
    ("a fort", "sticks and leaves", "the sticks fell down", "a long rope", "tie the sticks together",
     "crawled inside and told each other secrets"),
    ("a raft", "logs", "the logs floated apart", "a strong rope", "tie the logs together",
     "floated gently on the calm water"),
    ("a bird house", "bits of wood", "the roof was crooked and fell off", "a small hammer",
        "nail the roof on",
     "watched a family of birds move in"),
    ("a scarecrow", "straw and old clothes", "the straw fell out", "a needle and thread",
        "sew the clothes shut",
     "gave it a funny hat and a smile"),
    ("a snowman", "soft white snow", "its head rolled off", "a bucket of water", "make the snow stick",
     "gave it a carrot nose and a scarf"),
    ("a little bridge", "flat stones", "the stones sank in the mud", "two long boards", "reach both sides",
     "walked across it again and again"),
    ("a swing", "a board and some string", "the string snapped", "a thick rope", "hold the seat",
     "took turns and flew up high"),
    ("a kite", "paper and sticks", "the paper ripped", "a piece of strong cloth", "make it strong",
     "flew it until the sun went down"),
    ("a tent", "a blanket and two poles", "the poles tipped over", "a few heavy stones",
        "keep the poles standing",
     "had a picnic inside it"),
    ("a doll house", "cardboard", "the walls bent and fell in", "a pot of glue",
        "make the walls stand straight",
     "made a tiny table and two tiny chairs for it"),
    ("a robot", "old boxes", "the arms dropped off", "a roll of tape", "keep the arms on",
     "painted a big smile on its face"),
    ("a boat", "bark and leaves", "it tipped over and sank", "a small flat stone", "keep it steady",
     "watched it sail away"),
)

# Fear: (of what, when it shows, what the hero does, the advice, the brave act, what the hero finds).
FEARS = (
    ("the dark", "the lamp went out and everything was black", "hid under the blanket",
     "The dark is just the day taking a nap", "walked across the dark room all alone",
     "there was nothing there but a friendly moonbeam"),
    ("thunder", "there was a loud boom in the sky", "covered {his} ears", "Thunder is only the clouds "
                                                                          "bumping together",
     "sat by the window and counted the booms", "the lightning looked like a pretty picture"),
    ("deep water", "everyone else jumped into the water", "stayed on the shore",
     "Start with only your toes", "stepped into the cool water, one step at a time",
         "the water felt soft and nice"),
    ("high places", "everyone climbed up to the lookout", "stayed at the bottom and shook",
     "Do not look down, look at the next step", "climbed up, step by step", "the view was wonderful"),
    ("big dogs", "a huge dog came around the corner", "ran behind a wall", "Let it smell you first, nice and "
                                                                           "slow",
     "held still and let the dog come close", "the dog only wanted to lick {him}"),
    ("spiders", "a spider came down on a thin thread", "screamed and ran away",
     "The spider is small and you are big", "sat still and watched the spider work",
     "the web looked like silver lace"),
    ("talking to new people", "it was time to say hello to everyone", "hid behind a door",
     "A smile is the best way to start", "took a deep breath and said hello", "everybody smiled back"),
    ("the old bridge", "the path led over the old bridge", "stopped and would not move",
     "Hold on to the rope and take small steps", "walked over the bridge, holding the rope",
     "the bridge was strong after all"),
    ("the forest at night", "the sun went down and the trees made long shadows", "stood still and shook",
     "Listen well, and you will know every sound", "walked between the trees and listened",
     "the scary sound was only a sleepy owl"),
    ("loud noises", "a drum went boom, boom, boom", "ran and hid", "Try to clap along with it",
     "stepped closer and clapped along", "the noise was really a happy song"),
)

# Sight: (what to see, what is in the way, what to do, what it looks like, when).
SIGHTS = (
    ("a shooting star", "thick clouds covered the sky", "Wait a little, because clouds never stay for long",
     "a bright line of light raced across the sky", "night"),
    ("the sunrise", "{he} always slept too long", "I will wake you up before the birds",
     "the sky turned pink and gold", "dawn"),
    ("a rainbow", "it never rained while the sun was out", "Stand with your back to the sun after the rain",
     "seven bright colors stretched over the land", "day"),
    ("the first snow", "the sky stayed blue and empty", "Be patient, because the air already smells of snow",
     "soft white flakes floated down", "evening"),
    ("the full moon", "a tall hill hid it", "Let us climb up together",
     "the moon shone round and bright like a silver plate", "night"),
    ("the fireflies", "it was never dark enough", "Come with me to the shady side of the trees",
     "hundreds of tiny lights blinked on and off", "night"),
    ("a whale", "the waves were too high to see anything", "Let us look from the tall rocks",
     "a huge grey tail rose out of the water", "sea"),
    ("the night flower that blooms once a year", "nobody knew where it grew", "Follow the sweet smell",
     "its white petals opened one by one", "night"),
    ("the whole world from above", "the mountain was so steep", "Rest often and the top will come to you",
     "the rivers looked like ribbons and the houses like toys", "day"),
    ("the great parade", "the crowd was too big", "Sit on my shoulders and you will see it all",
     "drummers, dancers and horses went by", "day"),
)

# Dish: (dish, missing ingredient, container, where it comes from).
DISHES = (
    ("an apple pie", "apples", "a basket of apples", "picked them from {whis} own tree"),
    ("a birthday cake", "eggs", "six fresh eggs", "had just bought some"),
    ("a honey cake", "honey", "a jar of honey", "kept bees"),
    ("a loaf of bread", "flour", "a bag of flour", "had just been to the mill"),
    ("a pot of vegetable soup", "carrots", "a bunch of carrots", "grew them in {whis} garden"),
    ("a berry pie", "berries", "a bowl of berries", "had picked them that morning"),
    ("a tray of cookies", "butter", "a stick of butter", "had more than enough"),
    ("a chocolate cake", "milk", "a jug of milk", "had more than enough"),
    ("a batch of muffins", "sugar", "a cup of sugar", "always kept some in {whis} kitchen"),
    ("a pumpkin pie", "a pumpkin", "a fat orange pumpkin", "grew the biggest pumpkins around"),
    ("a stack of pancakes", "eggs", "a bowl of eggs", "had just bought some"),
    ("a lemon cake", "lemons", "three yellow lemons", "had a lemon tree by {whis} door"),
    ("a cherry tart", "cherries", "a basket of cherries", "picked them from {whis} own tree"),
    ("a nut cake", "nuts", "a bag of nuts", "had saved them since the fall"),
    ("a carrot cake", "carrots", "a bunch of carrots", "grew them in {whis} garden"),
    ("a plum pudding", "plums", "a bowl of plums", "picked them from {whis} own tree"),
)

# Plant: (seed word, what grows, what it bears at the end).
PLANTS = (
    ("a sunflower seed", "sunflower", "a flower as big as a plate", "as tall as {his} front door"),
    ("a pumpkin seed", "pumpkin plant", "a round orange pumpkin", "across the whole garden"),
    ("a bean", "bean plant", "long green beans", "up and around a tall stick"),
    ("a tomato seed", "tomato plant", "ripe red tomatoes", "taller every day"),
    ("an apple seed", "apple tree", "one sweet red apple", "a little more each year"),
    ("a strawberry seed", "strawberry plant", "sweet red strawberries", "wide and green"),
    ("a rose seed", "rose bush", "soft pink roses", "along the wall"),
    ("a tulip bulb", "tulip", "a bright red flower", "straight and tall"),
    ("a pea", "pea plant", "fat green peas", "up the fence"),
    ("a melon seed", "melon plant", "a huge sweet melon", "in every direction"),
    ("a carrot seed", "carrot plant", "a long orange carrot", "feathery and green"),
    ("a daisy seed", "daisy", "a pretty white flower", "up to {his} knees"),
    ("a cherry stone", "cherry tree", "bright red cherries", "a little more each year"),
)

# Small creature in need: (creature, trouble, what the hero does, how it shows its thanks).
CREATURES = (
    ("bird", "had hurt its wing and could not fly", "wrapped its wing in a soft cloth",
        "sang its sweetest song"),
    ("butterfly", "was stuck in a spider web", "opened the web very gently", "danced in circles in the air"),
    ("kitten", "was stuck on a high branch", "held up a long board for it to walk down", "purred loudly"),
    ("turtle", "lay on its back and could not turn over", "turned it over very gently", "nodded slowly"),
    ("bee", "had fallen into the water", "held out a leaf for it to climb on", "buzzed happily"),
    ("fish", "was trapped in a small, dry pool", "carried it to deep water in a bucket",
        "jumped high out of the water"),
    ("duckling", "had lost its mother", "followed the sound of quacking to find its mother",
        "gave a happy quack"),
    ("puppy", "had a thorn in its paw", "pulled the thorn out with care", "licked {his} face"),
    ("lamb", "was caught in a thorny bush", "pulled the thorns apart one by one", "gave a happy bleat"),
    ("baby owl", "had fallen out of its nest", "carried it back up to its nest", "hooted softly"),
    ("hedgehog", "had its foot caught in a fence", "bent the wire until its foot was free",
        "wiggled its tiny nose"),
    ("ladybug", "was too wet to fly", "dried it in the warm sunshine", "flew around {his} head three times"),
    ("mouse", "was stuck inside a glass jar", "tipped the jar until it slid out", "squeaked with joy"),
    ("squirrel", "could not find its nuts", "helped it dig in the right place", "gave {him} a shiny nut"),
    ("snail", "was stuck in the middle of a busy path", "carried it to the cool grass",
        "waved its tiny horns"),
)

# Strange sound: (sound, what it seemed, the source, where, why it made the sound, what they did).
NOISES = (
    ("scratch, scratch", "a monster with long claws", "a little kitten", "behind the door",
        "it wanted to come in",
     "gave it a bowl of milk"),
    ("whooo, whooo", "a ghost", "a young owl", "in a tree", "it could not sleep", "sang it a quiet song"),
    ("tap, tap, tap", "somebody with a big stick", "a small branch", "at the window",
        "the wind was pushing it",
     "laughed and waved at it"),
    ("splash, splash", "a sea monster", "a baby duck", "in the water", "it was learning how to swim",
     "clapped for it"),
    ("crunch, crunch", "a hungry wolf", "a little hedgehog", "in the dry leaves", "it was looking for supper",
     "gave it a piece of apple"),
    ("drip, drip, drip", "a sneaky thief", "a leaky bucket", "by the door", "there was a hole in it",
     "put a cork in the hole"),
    ("squeak, squeak", "a creature with sharp teeth", "a family of mice", "under the floor",
     "they were having a party", "gave them some cheese"),
    ("rattle, rattle", "a box of bones", "an old gate", "at the end of the path", "the wind was shaking it",
     "tied it shut with a string"),
    ("boo hoo, boo hoo", "a sad ghost", "a small bear cub", "behind a bush", "it had lost its way",
     "showed it the way home"),
    ("buzz, buzz", "a giant bug", "a little bee", "inside a flower", "its feet were stuck", "set it free"),
)

# Things a feeling of sickness or sadness is met with: (gift, effect).
COMFORTS = (
    ("a bowl of hot soup", "It was warm and tasty"), ("a bunch of yellow flowers",
        "They smelled like spring"),
    ("a funny picture", "It had a dancing cow on it"), ("a soft blanket", "It was warm and fluffy"),
    ("a cup of warm tea with honey", "It was sweet and hot"), ("a book of stories",
        "It was full of brave heroes"),
    ("a basket of berries", "They were sweet and ripe"), ("a paper crown", "It was shiny and gold"),
)
HANDMADE = (
    ("a necklace", "shells and a long string", "put the shells on the string, one by one"),
    ("a card", "paper and crayons", "drew a big heart and a yellow sun on it"),
    ("a crown", "leaves and flowers", "wove the flowers together"),
    ("a picture", "paper and paint", "painted the two of them under a rainbow"),
    ("a scarf", "soft wool", "knitted row after row"), ("a cup", "clay", "shaped the clay until it was "
                                                                         "smooth and round"),
    ("a song", "a tune in {his} head", "sang it again and again until it was perfect"),
    ("a little box", "bits of wood", "glued the pieces together and painted stars on the lid"),
    ("a toy bird", "paper", "folded the paper until it had two wings"),
    ("a bookmark", "a ribbon and a dried flower", "pressed the flower flat and tied it to the ribbon"),
    ("a wind chime", "shells and sticks", "hung the shells from the sticks"),
)
TREASURES = (
    ("a pile of gold coins", "give a coin to everyone they knew"), ("a box of chocolates",
        "eat them together"),
    ("a heap of shiny marbles", "share them with all their friends"), ("an old book of stories",
        "read it together"),
    ("a bag of magic seeds", "plant them for everyone to enjoy"), ("a silver bell",
        "hang it in the middle of the square"),
    ("a box full of toys", "play with them together"), ("a box of paints", "paint a picture for everyone"),
    ("a golden cup", "fill it with flowers"), ("a little music box", "listen to it together"),
)
SNACKS = (
    "a big red apple", "a slice of cake", "a warm cookie", "a cheese sandwich", "a bowl of berries",
        "a sweet pear",
    "a honey bun", "a bag of nuts", "a piece of pie", "a ripe peach", "a jam tart", "a banana", "a muffin",
)
GAMES = ("hide and seek", "tag", "catch", "marbles", "leapfrog", "pirates", "explorers", "kings and queens",
    "knights")
SHOWS = (
    ("sing a song", "sang", "the spring fair", "forgot the words"), ("dance", "danced", "the village dance",
        "froze"),
    ("tell a story", "told a wonderful story", "the story night", "forgot how the story began"),
    ("play the drum", "played the drum", "the big parade", "dropped the drumsticks"),
    ("do a magic trick", "did the magic trick", "the talent show", "dropped all the cards"),
    ("read a poem", "read the poem", "the winter feast", "could not make a sound"),
    ("play the flute", "played the flute", "the music night", "blew one squeaky note and stopped"),
)
JOBS = (
    ("baker", "mf"), ("farmer", "mf"), ("gardener", "mf"), ("teacher", "mf"), ("carpenter", "mf"),
        ("fisherman", "m"),
    ("shopkeeper", "mf"), ("doctor", "mf"), ("blacksmith", "m"), ("tailor", "mf"), ("beekeeper", "mf"),
    ("librarian", "mf"), ("mail carrier", "mf"), ("clockmaker", "mf"), ("shepherd", "mf"), ("painter", "mf"),
)
SURNAMES = """
Green Brown Hill Bell Rose Wood Baker Gray Finch Lake Potter Moss Reed Stone Pine Wells Fields Marsh Berry
Lane Penny Birch Cook Day Fisher Miller Field Parker Plum Snow West Winter Young Carter Nash Hart Bloom
""".split()
WISE = ("owl", "turtle", "badger", "goat", "crow", "toad", "horse", "donkey", "heron", "goose", "raven",
    "stork")
SEATS = (
    "under a tree", "on a big rock", "behind a bush", "on the ground", "on an old log", "by a fence",
        "on a tree stump",
    "on a low wall", "on a grassy bank",
)
