"""The plots: each takes a Scene, fixes the facts of its story, and returns the paragraphs as templates.

A plot says what its hero wants, what stands in the way, what is tried, who helps and how, and how it ends.
All facts it uses twice go through the scene's keys, so the thing lost is the thing found.  A plot writes no
text itself: choices `[a|b]` and keys `{H}` are resolved by Scene.render in generate.py, which also adds the
opening and the closing sentence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tools.stories import world

if TYPE_CHECKING:
    from tools.stories.generate import Scene

Plot = Callable[["Scene"], list[str]]
PLOTS: list[Plot] = []
WEIGHTS: list[int] = []
ONLY: dict[str, tuple[str, ...]] = {}


def plot(weight: int = 10, only: str = "") -> Callable[[Plot], Plot]:
    """Register a plot; `only` lists the sorts of hero (child animal magic) it suits."""
    def register(function: Plot) -> Plot:
        PLOTS.append(function)
        WEIGHTS.append(weight)
        ONLY[function.__name__] = tuple((only or "child animal magic").split())
        return function
    return register


# Plots that end away from home or in the night, where the closing has to fit, and plots whose other
# character is no friend at the start, where the opening has to fit.
OUTDOORS = {"stuck_high", "new_friend", "learn_skill", "build", "share", "race", "cross_river", "quarrel",
    "too_small",
            "treasure_map", "helping_work"}
STRANGERS = {"new_friend", "too_small", "race"}
NIGHT = {"bedtime", "strange_sound"}


def fits(function: Plot, s: Scene) -> bool:
    return s.world in ONLY[function.__name__]


@plot(14)
def lost_thing(s: Scene) -> list[str]:
    s.thing("toy keep wear")
    s.set(why=s.pick(("it must have fallen out of {his} bag",
        "{he} had put it down when {he} stopped to rest",
                      "{he} had dropped it when {he} ran", "{he} had left it there to watch the clouds")),
          look1=s.pick(("under the bed", "behind the door", "on the shelf")),
          look2=s.pick(("in every corner", "under the table", "behind the chair")))
    start = ('''{H} had a {Tf}. [It was {his} favorite thing in the whole world.|{He} took it everywhere.|{P}
        had given it to {him}.|{He} loved it very much.] {Day}, {H} went {to} [to play|with it|to have some
        fun]. [{View}.|] ''')
    if s.chance(0.5):
        s.set(N2=s.pick("HF").join("{}"))
        return [
            start,
            '''[But after a while|When it was time to go home|Then, all of a sudden], {N} [looked for|reached
            for] {his} {T}. It was gone! {N} looked {spot1}, but it was not there. {N} looked {spot2}, but
            [it was not there either|there was nothing]. {SAD}''',
            '''[{Ff} heard {him} and came over.|Just then, {Ff} came by.|{Ff} saw that {H} was sad.]
            "{WRONG}?" asked {F}. "[I lost my {Ts}|My {Ts} is gone|I cannot find my {Ts}]," said {H}. "[Do
            not worry|Do not cry|It is all right]. [I will help you look|We will find it together|Let us look
            for it together]," {SAIDF}.''',
            '''{H} and {F} looked [everywhere|high and low|all over the place]. [They asked everyone they
            met.|They looked behind every stone.|They went back the way {H} had come.|{F} looked on one side,
            and {H} looked on the other.] [Suddenly|Then|At last], {N2} saw something {spot3}. [It was the
            {Ts}!|There was the {Ts}!] [{H} remembered that {why}.|Now {H} knew that {why}.|]''',
            '''{GLAD} {THANKF} {WELCOMEF} [From that day on, {H} always took good care of {his} {T}.|After
            that, {H} always kept {his} {T} in a safe place.|{H} let {F} play with the {Ts}, too.|{H} learned
            that it is easier to find things with a friend.]''',
        ]
    return [
        start,
        '''[But when {N} came home|That evening|But later, at home], {N} [looked for|reached for] {his} {T}.
        It was gone! {N} looked {look1}, but it was not there. {N} looked {look2}, but [it was not there
        either|there was nothing]. {SAD}''',
        '''[Then {Wi} came by.|{Wi} came to see what was wrong.|{Wi} saw that {H} was sad.] "{WRONG}?" asked
        {W}. "[I lost my {Ts}|My {Ts} is gone|I cannot find my {Ts}]," said {H}. "[Think back|Think
        hard|Close your eyes and think]. Where [did you have it last|did you play last]?" [asked|said]
        {W}.''',
        '''{H} [thought about it|thought and thought]. "[I was {at}|I played {at}]!" {he} said. {He}
        [ran|hurried back|went back] {to}. First {he} looked {spot1}. Then {he} looked {spot3}. [There it
        was!|There was the {Ts}!|And there was {his} {Ts}!] [{H} remembered that {why}.|Now {he} knew that
        {why}.|]''',
        '''{GLAD} {H} ran back to tell {W}. {THANKW} {WELCOMEW} [From that day on, {H} always took good care
        of {his} {T}.|{H} held the {Ts} tight and did not let go.|{H} learned that it helps to stop and
        think.|From then on, {H} kept the {Ts} in a safe place.]''',
    ]


@plot(10)
def stuck_high(s: Scene) -> list[str]:
    s.thing("throw")
    s.windy()
    s.elder("family neighbor")
    tool = s.pick((("a long ladder", "climbed up the ladder"), ("a long rake", "reached up with the rake"),
                   ("a fishing pole", "hooked it with the fishing pole"), ("a tall stool",
                       "stood on the stool")))
    s.set(tool=tool[0], using=tool[1])
    s.set(rest=s.pick(("day long", "afternoon")))
    return [
        '''{Day}, {H} took {his} {Tf} {to}. [{View}.|] {N} [ran and played|had so much fun] with the {T}.
        [Suddenly|All of a sudden|Then], a strong wind [came|blew] and [took it away|carried it up, up,
        up|pulled it away]. The {T} got stuck high up on {high}.''',
        '''"Oh no!" [cried|said] {H}. {He} jumped as high as {he} could, but [it was too high|{he} could not
        reach it]. {He} threw a [stick|pine cone|little stone] at it, but [it missed|the {T} did not move].
        {SAD}''',
        '''[{Ff} saw what had happened.|{Ff} came to see.|Soon {Ff} came by.] "{WRONG}?" asked {F}. "The wind
        took my {T}, and now it is stuck," said {H}. [{F} tried to reach it, too, but {fhe} was too
        small.|{F} stood on {fhis} toes, but {fhe} could not reach it.|{F} jumped and jumped, but it was no
        use.] "[Let us ask|I know! Let us ask] {W} for help," said {F}.''',
        '''They [ran to|went to find] {Wi}. {W} [listened|heard the story] and [smiled|nodded]. "I have
        {tool}," {whe} said. {W} {using} and [brought the {T} down|took the {T} down] [with great care|very
        gently|].''',
        '''{GLAD} {THANKW} {WELCOMEW} [{H} let {F} have the first turn.|{H} and {F} played with the {Ts} all
        {rest}.|Then {H} and {F} played together.] [It is good to ask for help.|{H} learned that it is all
        right to ask for help.|Some things are too high for one, but not for friends.|]''',
    ]


@plot(14)
def new_friend(s: Scene) -> list[str]:
    game = s.pick(world.GAMES)
    s.thing("toy")
    first = s.pick((
        "{F} had just moved there and did not know anyone",
        "{F} was new and had nobody to play with",
        "{F} was too shy to say hello",
        "{F} was sad because all the others had gone away",
    ))
    s.set(game=game, first=first, snack=s.pick(world.SNACKS))
    offer = s.pick((
        ('''{H} held out {his} {Ts}. "[Would you like to play with me|Do you want to play with my {T}|Shall
            we play together]?" {he} asked.''',
                '''They took turns with the {T}, and [they laughed and laughed|they had
             so much fun].'''),
        ('''{H} had {snack} with {him}. {He} broke it in two and gave one half to {F}. "[This is for
            you|Here, you can have some]," {he} said.''', "They sat and ate together, and then they played "
                                                          "{game}."),
        ('"[Do you want to play {game}|Would you like to play {game}|Shall we play {game}]?" asked {H}.',
         "They played {game} until [the sun went down|it was time to go home|they were both tired]."),
    ))
    s.set(fhimself={"f": "herself", "m": "himself"}[s.friend.sex])
    return [
        '''But {H} [was lonely|had no one to play with|did not have a friend|felt all alone]. {He} wanted a
        friend [very much|more than anything|to play with]. "[I wish I had a friend|It is no fun to play
        alone|I want a friend]," {he} said [to {himself}|softly|to {P}].''',
        '''{Day}, {N} went {to}. [{View}.|] There {he} saw {Fn}. [{F} was sitting all alone.|{F} sat {sit1}
        and looked at the ground.|{F} was all by {fhimself}.] {First}.''',
        '''{H} felt a little [shy|afraid|nervous]. [What if {F} said no?|{He} did not know what to say.|{His}
        heart went thump, thump.] But {H} [took a deep breath|was brave] and [walked over|went closer].
        "Hello, [my name is|I am] {H}," {he} said. "[My name is|I am] {F}," said {F} [softly|in a quiet
        voice|with a small smile].''',
        offer[0] + ''' {F} [smiled|looked up and smiled|nodded and smiled]. "[Yes, please|Oh, yes|I would
            love to]!" {fhe} said. ''' + offer[1],
        '''"[Will you come back tomorrow|Can we play again tomorrow|Will you be my friend]?" asked {F}. "[Of
        course|Yes|Yes, I will]!" said {H}. [Now {H} was not lonely anymore.|Now {H} had a friend, and {F}
        had a friend, too.|From that day on, they played together every day.|{H} learned that a kind word can
        make a new friend.|Sometimes you only have to say hello.]''',
    ]


@plot(16)
def learn_skill(s: Scene) -> list[str]:
    noun = s.hero.kind.noun
    def suits(skill: tuple[str, ...]) -> bool:
        bars = skill[5].split()
        if "notdragon" in bars or "notwizard" in bars:
            return "not" + noun in bars
        return noun not in bars and s.world not in bars
    doing = s.pick([skill for skill in world.SKILLS if suits(skill)])
    if noun == "dragon" and s.chance(0.5):
        doing = s.pick([k for k in world.SKILLS if k[0] in ("breathe fire", "fly")])
    s.set(skill=doing[0], doing=doing[1], fail1=doing[2], fail2=doing[3], advice=doing[4], win=doing[5])
    # SKILLS rows are (do, doing, fail, fail, advice, success, bars)
    s.set(win=doing[5])
    s.set(span=s.pick(("morning", "day", "week")), friendword=s.pick(("friend", "good friend")))
    return [
        '''{H} wanted to learn to {skill}. [{F} could do it, and it looked like so much fun.|{His}
        {friendword} {F} could already do it.|All of {his} friends could do it, but {H} could not.|{He} had
        dreamed about it for a long time.] "[I want to {skill}, too|I will learn to {skill}|Today I will
        learn it]," said {H}.''',
        '''{Day}, {N} went {to} to [try|practice]. {He} tried once, but {fail1}. {TRYAGAIN} {He} tried again,
        but this time {fail2}. ["I will never learn it," said {H}.|"It is too hard," {he} said.|"I can't do
        it!" {he} cried.] [{SAD}|]''',
        '''[{Wi} had seen everything.|{Wi} was watching.|Just then, {Wi} came by.] "[Do not give up|Everybody
        falls down at first|Nobody can do it the first time|It takes time to learn]," said {W}. "[{advice}|I
        will tell you a secret. {advice}|Try it like this. {advice}]." {H} [nodded|listened well|dried {his}
        eyes and nodded].''',
        '''{H} tried again. {He} [thought of what {W} had said|remembered the words]. [The first time, it
        almost worked.|It was a little better.|It was still not easy.] {N} [practiced all {span}|tried again
        and again|practiced every day]. [And then|At last|Then, one day], {he} {win}! "[I did it|Look at me|I
        can do it|Look, I can {skill}]!" [shouted|cried] {H}.''',
        '''[{W} clapped and cheered.|"I knew you could do it," said {W}.|"Well done!" said {W}.] {GLAD} [{H}
        learned that practice makes things easy.|Now {H} knew that you must never give up.|From that day on,
        {H} loved {doing}.|Hard things become easy when you keep trying.|{H} was glad that {he} had not given
        up.]''',
    ]


@plot(12)
def build(s: Scene) -> list[str]:
    what, stuff, fail, tool, help_, use = s.pick(world.BUILDS)
    s.set(what=what, stuff=stuff, fail=fail, tool=tool, helps=help_, use=use, noun=what.split(" ", 1)[1])
    s.elder("family neighbor")
    if "snow" in what:
        s.set(weather="snowy", day=f"one snowy {s.time}")
        s.weather = "snowy"
    where = {"a sand castle": "on the sand", "a snowman": "in the snow", "a raft": "by the water",
        "a boat": "by the water", "a bird house": "in the garden"}.get(
        what, s.pick(("{at}", "{at}", "near {his} home")))
    s.set(where=where)
    friend_first = s.chance(0.5)
    return [
        '''{Day}, {H} had [an idea|a good idea|a big plan]. "[I want to build|I am going to build|Let us
        build] {what}!" '''
        + ('''{he} said to {Ff}. "[Great|What a good idea|Yes]! Can I help?" asked {F}. "Yes, please," said
            {H}.'''
           if friend_first else
           '''{he} said. {Ff} heard {him}. "[Can I help you|May I help|Can I build it with you]?" asked {F}.
           "Of course," said {H}.'''),
        '''They [looked for|found|gathered] {stuff} and started to [build|work] {where}. [They worked
        hard.|{H} did one side and {F} did the other.|They sang while they worked.] But [soon|before
        long|when it was almost done], {fail}. "Oh no!" said {F}. They tried again, [but it happened
        again|but it was no better|but the same thing happened]. ["It will never work," said {H}.|{H} wanted
        to give up.|{H} kicked the ground.]''',
        '''Then {Wi} [came to look|stopped to watch|came by]. "[What are you making|What are you two
        doing|What is this going to be]?" asked {W}. "[We want to build {what}|We are trying to build
        {what}], but {fail}," said {H}. {W} thought for a moment. "[I have|I think you need|Take] {tool},"
        {whe} said. "[It will|That will] help you {helps}."''',
        '''[{W} showed them how to use it.|{H} and {F} tried it at once.|So they started again.] This time,
        [it worked|everything went well|it did not fall apart]. [Soon|At last|Before long], the {noun} was
        [done|ready|finished]. "[We did it|It is perfect|It is beautiful|Hooray]!" [cried|shouted] {F}.''',
        '''{H} and {F} {use}. {THANKW} [{H} learned that it is easier to build things together.|It was the
        best {noun} they had ever seen.|They were very proud of their {noun}.|Together, they had made
        something wonderful.|When a thing goes wrong, you can always try another way.]''',
    ]


@plot(14)
def help_creature(s: Scene) -> list[str]:
    noun, trouble, helping, thanks = s.pick([c for c in world.CREATURES if c[0] != s.hero.kind.noun])
    s.set(c=noun, trouble=trouble, helping=helping, thanks=thanks)
    alone = s.chance(0.5)
    return [
        '''{Day}, {H} [went|walked|was on {his} way] {to}. [{View}.|] [Suddenly|Then], {he} heard a
        [small|tiny|sad] sound. {N} looked {spot1}. [There was|{He} found|There {he} saw] a little {c}. The
        {c} {trouble}.''',
        '''"[Oh, you poor thing|Oh dear|Poor little {c}]!" said {H}. [The {c} looked up at {him} with sad
        eyes.|The {c} was very scared.|The {c} shook with fear.] "[Do not be afraid|Do not worry|Do not be
        scared]. I will help you," {he} said [softly|in a quiet voice].''',
        ('''{H} [thought for a moment|knew what to do]. {He} [moved slowly|was very careful], and {he}
            {helping}. [It took a long time, but {H} did not give up.|It was not easy, but {H} was
            patient.|]'''
         if alone else
         '''But {H} did not know [what to do|how]. {He} ran to get {Wi}. "[Please help|Come quickly]! There
         is a little {c} [in trouble|that needs help]," {H} said. {W} [came at once|hurried along] and showed
         {him} what to do. {H} was very careful, and {he} {helping}.'''),
        '''[Soon the {c} felt better.|Now the {c} was safe.|At last the {c} was all right again.] It
        {thanks}. "[It is saying thank you|I think it likes me|I think it is happy]," said {H}.'''
        + ("" if alone else ' "[You were very kind|You have a good heart|You did well], {H}," said {W}.'),
        '''[The next day|A few days later|From then on], the {c} [came back to see {H}|came to visit {H}].
        [They became good friends.|It had not forgotten {him}.|They played together.] [{H} learned that even
        small ones need a friend.|{H} was glad that {he} had stopped to help.|A little kindness goes a long
        way.|{H} knew that it feels good to help.]''',
    ]


@plot(10)
def see_sight(s: Scene) -> list[str]:
    sights = [x for x in world.SIGHTS if not (x[4] == "sea" and s.region != "seaside")
              and not ("parade" in x[0] and s.region not in ("village", "town"))
              and not ("mountain" in x[1] and s.region != "hills")]
    sight, obstacle, advice, view, when = s.pick(sights)
    s.set(sight=sight, obstacle=obstacle, advice=advice, seen=view,
          go={"night": "That night", "dawn": "Very early the next morning", "day": "The next day",
              "evening": "That evening", "sea": "The next day"}[when])
    with_friend = s.chance(0.5)
    s.set(obstaclei=obstacle.replace("{he} always", "I always"))
    return [
        '''There was one thing {H} wanted [more than anything|very much]. {He} wanted to see {sight}. [{P}
        had told {him} all about it.|{He} had read about it in a book.|{He} had dreamed about it many
        times.|{He} had heard so many stories about it.] "[It must be so beautiful|I have to see it|One day I
        will see it]," {he} said.''',
        '''{Day}, {N} [went out to look|decided to try]. But {obstacle}. {He} waited [and waited|for a long
        time], but [there was nothing to see|{he} saw nothing at all]. {SAD}''',
        '''"{WRONG}?" asked {Wi}. "I wanted to see {sight}, but {obstaclei}," said {H}. {W}
        [smiled|nodded|put an arm around {him}]. "{advice}," {whe} said.''' + (' "[And take {F} with you|You '
                                                                               'can bring {F}, too|And {F} '
                                                                               'can come, too]."'
                                               if with_friend else ""),
        "{Go}, " + ("{H} and {F} went with {W}" if with_friend else "{H} went with {W}") + '''. [They did
            just what {W} had said.|They sat close together and were very quiet.|They took a warm blanket
            with them.] {H} [held {his} breath|hardly dared to blink|was so excited]. And then it happened.
            {Seen}.''',
        '''"[Oh|Wow|Look], [it is so beautiful|how wonderful|I have never seen anything like it]!"
        [whispered|said] {H}. ''' +
        ('"[I will never forget this|This is the best thing ever]," said {F}. ' if with_friend else "")
        + '''{THANKW} [{H} learned that good things are worth the wait.|It was even better than {he} had
            dreamed.|{H} kept the picture in {his} heart.|Good things come to those who wait.]''',
    ]


@plot(12)
def bake(s: Scene) -> list[str]:
    dish, missing, amount, source = s.pick(world.DISHES)
    s.elder("neighbor wise" if s.world == "child" else "wise neighbor")
    reason, guest = s.pick((("for {P}'s birthday", "{P}"), ("for {Ff}", "{F}"), ("for the village feast",
        "everyone"),
                            ("as a surprise for {P}", "{P}"), ("because {F} was coming to visit", "{F}"),
                            ("to thank {F} for being so kind", "{F}")))
    trade = s.pick((
        ('"[Of course|Yes, of course], you can have {amount}," said {W}. {He2} {source}.',
            '"You are very kind," said {H}.'),
        ('''"I will give you {amount} if you [sweep my floor|water my plants|carry my basket|bring in the
            wood] for me," said {W}. {H} [did it at once|worked hard and did it well].''',
                "{W} was pleased and gave {him} {amount}."),
    ))
    s.set(dish=dish, missing=missing, amount=amount, source=source, reason=reason, guest=guest,
          noun=dish.split(" ", 1)[1], they="they were" if missing.endswith("s") else "it was",
          he2=s.keys["whe"])
    s.set(time2={"morning": "morning", "afternoon": "afternoon"}.get(s.time, "day"))
    return [
        "{Day}, {H} wanted to make {dish} {reason}. {He} [put on an apron|washed {his} {hands}|found a big "
        "bowl|took out a spoon] "
        "and looked in the kitchen. [There was almost everything {he} needed.|{He} found nearly everything.] "
        "But there "
        f"{'were' if missing.endswith('s') else 'was'} no {missing.removeprefix('a ')}!",
        '''"[Oh no|Oh dear]! I cannot make {dish} without {missing}," said {H}. {He} looked [on the top
        shelf|in every box|behind the jars], but [it was no use|there was nothing there]. [{SAD}|] Then {he}
        had an idea. "[I will ask|Maybe I can ask] {W}," {he} said.''',
        '''{H} went to see {Wi}. "[Good {time2}|Hello], {Wv}," said {H}. "[Do you have {missing} for me|Could
        I please have {missing}|May I have {missing}, please]? I want to make {dish}." '''
        + trade[0] + " " + trade[1],
        '''{H} [hurried|ran|went] home and [started to cook|began to mix|got to work]. {He} mixed and
        stirred, and {P} helped {him} with the hot stove. Soon a [sweet|wonderful|lovely] smell filled the
        [kitchen|whole house|air]. The {noun} was ready!''',
        ("{H} [gave it to|put it in front of] {guest}. " if guest != "everyone" else
         "{H} shared it with everyone. ")
        + ('''"[This is the best {noun} I have ever had|Mmm, this is so good|It is delicious]!"
           said {guest}. '''
           if guest != "everyone" else '"[This is the best {noun} ever|Mmm, this is so good]!" they said. ')
        + '''{H} kept some for {W}, too. [Food tastes best when it is shared.|{H} was very proud.|{H} learned
            that it is good to ask when you need help.|Everybody ate until nothing was left.]''',
    ]


@plot(12)
def overcome_fear(s: Scene) -> list[str]:
    fear, scene, hid, advice, brave, found = s.pick(world.FEARS)
    if fear in ("the dark", "the forest at night", "thunder"):
        s.set(day="one [night|evening]" if fear != "the forest at night" else "one evening")
    s.set(fear=fear, scene=scene, hid=hid, advice=advice, brave=brave, found=found)
    helper = s.pick(("P", "W"))
    s.set(X="{" + helper + "}", Xi="{" + helper + "i}")
    return [
        '''But {H} was afraid of {fear}. [{He} did not tell anyone.|Nobody knew about it.|{He} did not want
        the others to know.|It made {him} feel very small.|{F} was not afraid, but {H} was.]''',
        '''{Day}, {scene}. {H} [felt {his} heart beat fast|began to shake|felt cold all over]. {He} {hid}.
        "[I am too scared|I can't do it|I am not brave]," {he} [whispered|said in a tiny voice].''',
        '''{Xi} [found {him} there|saw {him}|came and sat down next to {him}]. "{WRONG}?" {X} asked. "I am
        afraid of {fear}," said {H}. [{X} did not laugh.|{X} gave {him} a hug.|{X} nodded.] "[Everybody is
        afraid of something|I was afraid of {fear} once, too|It is all right to be afraid]," said {X}.
        "{advice}."''',
        '''{H} thought about it for [a while|a long time]. [The next time, {he} was ready.|Then {he} stood
        up.|{He} took a deep breath.] [Slowly|Very slowly|With {his} eyes almost closed], {he} {brave}. And
        do you know what? {Found}.''',
        '''"[I did it|I was brave|It is not so bad|It is not scary at all]!" said {H}. "[I am proud of
        you|You are very brave|I knew you could do it]," said {X}. [From that day on, {H} was not so afraid
        of {fear}.|{H} learned that being brave means doing it even when you are afraid.|Now {H} was a little
        bit braver than before.|After that, {H} helped {F} to be brave, too.]''',
    ]


@plot(12)
def share(s: Scene) -> list[str]:
    if s.chance(0.5):
        s.thing("toy")
        s.set(play="play with it", turn="take a turn", played="played with the {T}",
            nice="[What a nice {T}|Oh, how nice|I like your {T}]")
    else:
        food = s.pick(("basket of berries", "bag of nuts", "box of cookies", "bowl of cherries",
            "jar of candy", "plate of pancakes",
                       "bag of apples", "basket of plums"))
        s.set(Tf=food, Ts=food, T=food, play="have some", turn="have some, too",
            played="ate from the " + food.split(" ")[0],
              nice="[That looks good|Mmm, that smells good|Oh, how nice]")
    return [
        "{Day}, {P} gave {H} a {Tf}. {GLAD} {He} took it {to}. [{View}.|]",
        '''{Ff} [came over|was there, too|saw it]. "{nice}! [May I {play}|Can I {play}|Can I {turn}],
        please?" asked {F}. "No!" said {H}. "[It is mine|It is only for me|It is all mine]!" {He} held the
        {T} tight and turned away. {F} [looked sad|looked at the ground|said nothing] and [walked away|went
        home].''',
        '''{H} {played} all alone. But [it was not much fun|after a while, it was not fun anymore|something
        felt wrong]. {He} looked around, and there was nobody [to laugh with|to talk to]. [{H} thought about
        {F}'s sad face.|{H} felt lonely.]''',
        '''[{Wi} came by.|Then {Wi} sat down beside {him}.] "[Why are you all alone|Where is {F}]?" asked
        {W}. "I did not want to share my {T}," said {H} [softly|in a small voice]. "[A thing is more fun with
        a friend|Joy grows when you share it|When you share, you have two happy faces and not one]," said
        {W}.''',
        '''{H} [knew what to do|jumped up] and ran to find {F}. "I am sorry, {F}," {he} said. "[Please come
        and {play}|Do you want to {turn}|Let us share]." {F} [smiled|smiled a big smile|was happy again].
        "[Thank you|I would love to|That is very kind of you]!" {fhe} said. {H} and {F} {played} together,
        and [they laughed a lot|it was much more fun].''',
        '''[{H} learned that sharing makes everything better.|From that day on, {H} liked to share.|After
        that, {H} always shared with {F}.|{H} was glad that {he} had shared.|It is much nicer to share.]''',
    ]


@plot(12)
def race(s: Scene) -> list[str]:
    s.set(goal=s.pick(("{high}", "the big tree", "the old gate", "the end of the path", "the tall rock")),
          prize=s.pick(("a golden cup", "a blue ribbon", "a big cake", "a shiny medal", "a crown of flowers",
              "a silver bell")))
    kind = s.pick(("help", "practice"))
    start = ('''{Day}, there was a [big|great] race {at}. [{View}.|] Everyone wanted to win {prize}. {H}
        [wanted to win, too|had waited for this day|wanted to win very much]. But {F} was the fastest of all.
        "[You are too slow to win|Nobody is faster than me|I will win for sure]," said {F}.''')
    if kind == "help":
        return [
            start + " {H} [did not say anything|only smiled|was a bit worried].",
            '''"[One, two, three, go|Ready, set, go]!" called {Wi}. They all ran [as fast as they could|like
            the wind]. {F} was in front, and {H} ran [close behind|right after {fhim}]. [Faster and faster
            they went.|{His} heart beat fast.] Then, near the end, {F} [tripped over a root|slipped on a wet
            stone|stepped into a hole] and fell down. "[Ouch|Ow]! My foot!" {fhe} cried.''',
            '''{H} could see {goal}. [{He} could win now!|Now {he} could win the race!] But {he} looked back
            at {F}. [Then {he} stopped.|{He} did not want to leave {fhim} there.] {H} turned around and
            [helped {F} to stand up|held out {his} {hand}]. "[Lean on me|Come on, we can do it together|I
            will help you]," {he} said.''',
            '''Slowly, the two of them walked to {goal} together. [They were the last ones, but everyone
            clapped.|They came in last, but everybody cheered.] "[Why did you stop? You could have won|You
            could have won, but you helped me]," said {F}. "[A friend is better than a prize|You needed me|I
            did not want to win like that]," said {H}.''',
            '''{W} [smiled and held up|came over with] {prize}. "[This is for the kindest one of all|The one
            with the biggest heart gets this]," {whe} said, and {whe} gave it to {H}. [{F} clapped the
            loudest.|{F} said sorry for {fhis} unkind words.] [{H} learned that being kind is better than
            being first.|Being kind is the best way to win.]''',
        ]
    return [
        start + " [{SAD}|]",
        '''[The race was one week away.|There were still seven days to go.] {H} went to {Wi}. "I want to be
        fast, but I am slow," {he} said. "[Run a little every day|Do not look at the others, just keep
        going|Start slowly and never stop]," said {W}. So {H} [got up early and ran|practiced] every morning.
        [At first, {he} got tired very soon.|At first, it was hard.] But every day it got a little
        easier.''',
        '''At last the day of the race came. "[One, two, three, go|Ready, set, go]!" called {W}. {F} ran
        [ahead|off like the wind], but {fhe} soon [stopped to rest|got tired|sat down to take a nap]. {H} did
        not stop. {He} ran and ran, one step after the other. {He} [passed {F}|ran past {F}] and [saw
        {goal}|came closer and closer to {goal}].''',
        '''{H} [crossed the line first|reached {goal} first|was the first to get there]! [Everyone
        cheered.|Everybody clapped.] {W} gave {him} {prize}. {F} came up to {him}. "[You were great|I am
        sorry for what I said|You are really fast now]," said {F}. "[Thank you|Thanks]. [Let us run together
        tomorrow|You are fast, too]," said {H}.''',
        '''[{H} learned that hard work pays off.|Never giving up is better than being fast.|{H} was very
        proud of {himself}.|And after that, {H} and {F} ran together every morning.]''',
    ]


@plot(12)
def plant_garden(s: Scene) -> list[str]:
    seed, grows, fruit, how = s.pick(world.PLANTS)
    s.set(seed=seed, grows=grows, fruit=fruit, how=how, noun=seed.split(" ", 1)[1])
    return [
        '''{Day}, {Wi} gave {H} {seed}. "[What is it|What can I do with it|What will it be]?" asked {H}.
        "[Put it in the ground and take care of it|Plant it, and you will see|It will be a {grows} one day],"
        said {W}.''',
        '''{H} [dug a small hole|made a hole in the soft ground] near {his} home and put the {noun} in. {He}
        [covered it with earth|put earth on top] and gave it some water. Then {he} sat down and waited. {He}
        waited all day, but nothing [happened|came up]. The next day, {he} looked again. Still there was
        nothing. "[It does not work|Maybe it is asleep]," said {H}.''',
        '''{Ff} came to see. "[You should dig it up and look|Maybe it needs a song|I think it needs more
        time]," said {F}. {H} went to ask {W}. "[A seed needs water, sun, and time|Do not dig it up. It needs
        water, sun, and time|You must be patient. It is working under the ground]," said {W}.''',
        '''So every [morning|day], {H} [gave it water|watered it] and [pulled out the weeds|kept the bugs
        away|sang to it]. The sun shone and the rain fell. [One morning|Then, one day|And then, one fine
        day], there was a tiny green leaf! "[Look|Look, {F}]! It is growing!" cried {H}. It grew {how}. At
        last it was a real {grows}, and it had {fruit}.''',
        '''{H} [shared it with|showed it to] {F} and {W}. "[You took good care of it|You were very patient|I
        am proud of you]," said {W}. [{H} learned that good things need time.|{H} kept a new seed for the
        next year.|{H} was so proud of {his} {grows}.|Good things grow slowly.]''',
    ]


@plot(12)
def fix_broken(s: Scene) -> list[str]:
    adjective, noun, how, part, fix, tool = s.pick(world.BROKEN)
    s.set(b=noun, bs=f"{adjective} {noun}", how=how, part=part, fix=fix, tool=tool)
    if adjective in ("tea", "music", "bird", "garden", "rag", "toy", "rope"):
        s.set(b=f"{adjective} {noun}")
    s.elder("family neighbor")
    owner = s.pick(("hero", "friend"))
    if owner == "friend":
        return [
            '''{Day}, {H} [went to visit|wanted to play with] {Ff}. But {F} was [crying|very sad|sitting with
            {fhis} head down]. "{WRONG}?" asked {H}. "[It is my {bs}|My {bs} is broken]. I was playing, and
            {how}," said {F}. {H} looked at it. {Part}.''',
            '''"[Do not cry|Do not be sad], {F}. [I will help you|We will fix it|I will try to fix it]," said
            {H}. {H} tried to [hold it together with string|push it back in place|tie it with a ribbon], but
            it [broke|came apart] again. [Then {F} tried, but {fhe} could not do it, either.|]''',
            '''"[Who can help us|What shall we do now]?" asked {F}. "[I know|I have an idea]! [Let us go
            to|We can ask] {W}," said {H}. So they took the {b} to {Wi}. "[We can fix this|I can help you
            with that|That is not so bad]," said {W}. {W} took out {tool}. {H} held the {b} [still|with both
            {hands}], and {W} {fix}.''',
            '''[Now the {b} was as good as new.|The {b} was like new again.|Soon the {b} was fixed.] {F}
            jumped for joy. "[Thank you, {H}|Thank you both|Thank you so much]!" {fhe} cried. "[That is what
            friends are for|I am glad you are happy again]," said {H}.''',
            '''[{H} was happy because {F} was happy.|{H} and {F} used the {b} together all day.|{H} learned
            that helping a friend feels good.|A good friend helps when something goes wrong.]''',
        ]
    return [
        '''{H} had a {bs}. [It was {his} favorite thing.|{He} liked it very much.|{He} used it every day.]
        But {day}, {how}. {H} looked at it. {Part}. {SAD}''',
        '''First {N} tried to [hold it together with string|push it back in place|tie it with a ribbon], but
        it [broke|came apart] again. Then {Ff} tried, but {fhe} could not [fix it|do it], either. "[Maybe we
        can ask|Let us ask|We should ask] {W}," said {F}.''',
        '''They took the {b} to {Wi}. "[Can you fix it, please|Can you help me, please]?" asked {H}. "[Let me
        see|Let me have a look]," said {W}. {W} [looked at it from every side|turned it around and around].
        "[I know what to do|I can see what is wrong|This is not so bad]. [Bring me|We need|I need] {tool}."
        {H} [ran to get it|found it on a shelf and brought it].''',
        '''{W} showed {him} how to do it. [They worked slowly and carefully.|{H} watched closely and helped.]
        Together, they {fix}. [Now the {b} was as good as new.|The {b} was like new again.|And then the {b}
        was fixed!]''',
        '''{GLAD} {THANKW} {WELCOMEW} [{H} learned that many broken things can be fixed.|From then on, {H}
        was more careful with the {b}.|Now {H} knew how to fix things, too.|After that, {H} fixed things for
        others, too.]''',
    ]


@plot(10)
def storm(s: Scene) -> list[str]:
    wild = ("a small cave", "a hollow tree", "an old hut", "a dry place under a big rock")
    s.set(shelter=s.pick(("an empty shed", "an old barn", *wild) if s.region != "town" else ("an empty shed",
        "a bus stop with a roof")),
          snack=s.pick(world.SNACKS), wet=s.pick(("rain", "rain", "snow")))
    s.set(sky="The rain began to fall, first slowly and then [harder and harder|very hard]"
          if s.keys["wet"] == "rain" else '''Snow began to fall, first slowly and then [so thick that they
              could not see|very fast]''')
    s.set(game=s.pick(world.GAMES))
    return [
        '''{Day}, {H} and {Ff} went {to}. [{View}.|] They played {game} and [had a lot of fun|laughed a
        lot|forgot the time]. Then [dark|big grey] clouds came, and [it got cold|the wind blew|it got dark].
        "[I think a storm is coming|Look at the sky|We should go home]," said {F}.''',
        '''But it was too late. {Sky}. [The path was gone.|They could not find the path.|Home was too far
        away.] "[I am cold|I am scared]," said {F}.''' + ''' {H} was [afraid|scared], too,
            but {he} [took {F} by the {fhand}|tried to be brave]. "[Stay close to me|We must find a dry
            place|Come with me]," said {H}.''',
        '''{H} looked all around. There was {shelter} not far away. They ran inside [just in time|as fast as
        they could]. [It was dry and quiet there.|Inside, it was warm and dry.] {H} had {snack} in {his} bag.
        {He} [gave half of it to {F}|shared it with {F}]. They [told each other stories|sang songs|played a
        guessing game] to forget about the storm.''',
        '''[After a while|At last|Then], the storm [stopped|went away], and the [sun came out|sky was blue
        again]. {P} came [down the path|running], calling their names. "[There you are|I was so worried]!"
        said {P}. {Phe} [hugged them both|held them tight]. "{H} [found this place|kept me safe|was very
        brave]," said {F}.''',
        '''[They all went home and had a hot drink.|At home, {P} gave them warm soup.|At home, they sat by
        the fire until they were warm.] [{H} learned that it is easier to be brave when a friend is near.|A
        storm is not so scary with a friend.|From then on, {H} always looked at the sky before {he} went
        out.|{H} and {F} never forgot the day of the storm.]''',
    ]


@plot(9)
def bedtime(s: Scene) -> list[str]:
    s.set(first=s.pick((("drank a glass of water", "but {he} was still awake"),
                        ("counted sheep", "but the sheep in {his} head began to dance"),
                        ("hugged {his} pillow", "but {he} was not sleepy at all"),
                        ("closed {his} eyes very tight", "but they popped open again")))[0] + ", {firstbut}")
    why = s.pick((
        ("{he} was thinking about the next day",
            "Tomorrow will come by itself, and you will be ready for it"),
        ("the wind made strange sounds", "The wind is only singing to the trees"),
        ("{he} missed {Ff}, who was far away", "{F} sees the same moon that you see"),
        ("the room was too quiet", "Then let us listen for the smallest sound in the world"),
        ("{he} had slept too long that afternoon", "Even the sun must rest, and so must you"),
    ))
    tries = s.rng.sample((
        "{H} drank a glass of water, but {he} was still awake.", "{H} counted sheep, but the sheep in {his} "
                                                                 "head began to dance.",
        "{H} hugged {his} pillow, but {he} was not sleepy at all.", "{H} closed {his} eyes very tight, but "
                                                                    "they popped open again.",
        "{H} turned to the left, and {H} turned to the right, but it did not help.",
        "{H} sang a little song, but that only made {him} more awake."), 2)
    s.set(why=why[0], calm=why[1], way=s.pick((
        ("told {him} a story about a sleepy cloud|told {him} a story about a ship that sailed to the moon"),
        ("sang {him} a soft song|hummed a slow, sweet tune"),
        ("showed {him} the stars outside and gave each one a name|counted the stars with {him}"))))
    s.set(way="[" + s.keys["way"] + "]", first="")
    s.thing("soft")
    return [
        '''One night, {H} [could not sleep|was wide awake]. [The moon was high, and everybody else was
        asleep.|It was late, and the house was quiet.|The stars were out, and it was very late.] {H} could
        not sleep because {why}.''' if s.hero.kind.noun in
        ("girl", "boy") else '''One night, {H} [could not sleep|was wide awake]. [The moon was high, and
            everybody else was asleep.|It was late, and the world was quiet.] {H} could not sleep because
            {why}.''',
        tries[0] + " " + tries[1] + ' ["I will never fall asleep," {he} said.|"Oh dear," {he} said.|]',
        '''{H} [got up|tiptoed out of bed] and went to {Pi}. "[I can't sleep|I am not tired|Sleep will not
        come]," {he} said. {P} [smiled|was not angry|yawned and smiled]. "[Come here, my dear|Come here,
        little one|Oh, my little {H}]. {calm}," said {P}.''',
        '''{P} [tucked {him} in|sat down by {his} bed] and gave {him} {his} {Tf}. Then {P} {way}. [{H}'s eyes
        grew heavy.|Little by little, {H} felt calm and warm.|{H} listened and forgot all about being awake.]
        "[Good night|Sleep well|Sweet dreams], {H}," [whispered|said] {P}.''',
        '''"Good night," said {H} [softly|with a yawn]. {He} held the {Ts} close. [Soon {he} was fast
        asleep.|And then {he} was asleep.|A moment later, {he} was sleeping.] [The moon shone in and kept
        watch.|Outside, the night was quiet.|]''',
    ]


@plot(10)
def surprise_party(s: Scene) -> list[str]:
    dish = s.pick(("chocolate cake", "berry pie", "honey cake", "big cake", "lemon cake", "carrot cake"))
    gift = s.pick((("a {Tf}", "the {T}"), ("a {Tf}", "the {T}"), ("a card with everyone's name on it",
        "the card")))
    s.set(dish=dish, gift=gift[0], gift2=gift[1], hide=s.pick((
        "behind the {door}", "under the table", "behind a big tree", "in the garden")).replace("{door}",
            "door"))
    s.thing("toy keep wear")
    if s.chance(0.5):
        s.set(game=s.pick(world.GAMES))
        return [
            '''It was {H}'s birthday. [{He} woke up early and was very excited.|{He} had waited for this day
            all year.] But {P} did not say a word about it. "[Good morning|Hello], {P}," said {H}. "[Good
            morning|Hello, {H}]. I am very busy today," said {P}.''',
            '''{H} went to see {Ff}. "[Do you know what day it is|Can you play with me today]?" {he} asked.
            "[I have no time today|Sorry, I have to go]," said {F}, and {fhe} ran away. Then {H} met {Wi}.
            But {W} only [waved|said hello] and hurried on. "[Nobody remembers my birthday|Everyone has
            forgotten me]," thought {H}. {SAD}''',
            '''{H} walked {to} and sat there all alone [until evening|for a long time]. [{View}, but {H} did
            not care.|] At last {he} went home. [It was dark and quiet inside.|There was no sound at all.]
            {H} opened the door.''',
            '''"Surprise!" [shouted|cried] everybody. {P}, {F} and {W} jumped up from {hide}. There was a
            {dish} [with candles|on the table], and there were [balloons|paper stars|flowers] everywhere.
            "[Happy birthday, {H}|We did not forget you]," said {P}. {F} gave {him} {gift}. "[I could not
            tell you|I had to keep the secret]," {fhe} said with a [smile|laugh].''',
            '''{GLAD} They ate the {dish} and [danced|played {game}|sang songs] until late. [{H} knew now
            that {his} friends had not forgotten {him}.|It was the best birthday of all.|{H} had never had
            such a fine birthday.]''',
        ]
    s.set(game=s.pick(world.GAMES))
    return [
        '''Soon it would be {F}'s birthday. {H} wanted to [make a surprise party|plan a big surprise] for
        {F}. {H} told {P} and {Wi} about it. "[But it must be a secret|Do not tell {F}|{F} must not know],"
        said {H}. "[We will help you|What a good idea]," said {P}.''',
        '''{P} made a {dish}. {W} [brought flowers|hung up paper stars|blew up the balloons]. {H}
        [found|made|wrapped up] {gift} for {F}. But then {F} came to the door! "[What are you doing|Can I
        come in|What smells so good]?" asked {F}. {H} [did not know what to say|had to think fast]. "[I am
        cleaning my room|I am busy now|It is only soup]. [Please come back later|Come back this evening],"
        said {H}. {F} looked [sad|puzzled] and went away.''',
        '''{H} felt bad. "[Now {F} is sad|I do not like to see {F} sad]," {he} said. "[Just wait|It will be
        all right|It is only for a little while]," said {P}. That evening, they all hid {hide} and [were very
        quiet|waited]. There was a knock. {F} came in.''',
        '''"Surprise! Happy birthday, {F}!" they all [shouted|cried]. {F} [jumped|could not believe it|opened
        {fhis} eyes wide]. "[Is this all for me|Did you do this for me]?" {fhe} asked. "[Yes|Of course]! You
        are my [best |]friend," said {H}, and {he} gave {F} {gift2}.''',
        '''{F} [hugged {H}|laughed and hugged everyone]. They ate the {dish} and played {game}. [{H} was glad
        that {he} had kept the secret.|{H} found out that giving is as much fun as getting.|Making a friend
        happy is the best gift of all.]''',
    ]


@plot(11)
def tell_truth(s: Scene) -> list[str]:
    broke, where, how = s.pick((
        ("vase", "on the table", "ran around the table and bumped into it"),
        ("blue cup", "on the shelf", "tried to reach the cookies and knocked it down"),
        ("lamp", "by the window", "threw {his} ball inside the house and hit it"),
        ("plate", "on the table", "danced around and hit it with {his} arm"),
        ("clay pot", "by the door", "jumped over it and kicked it"),
        ("window", "at the front of the house", "kicked {his} ball too hard"),
        ("flower pot", "on the step", "played pirates and fell against it"),
        ("jam jar", "in the kitchen", "tried to carry too many things at once"),
        ("mirror", "on the wall", "swung a stick like a sword and hit it"),
        ("teapot", "on the table", "pulled on the tablecloth"),
    ))
    s.set(b=broke, where=where, how=how)
    hide = "put the pieces under the bed|hid the pieces in a box|swept the pieces behind a chair"
    s.set(hide="[" + hide + "]" if broke != "window" else "[closed the curtain|ran away and hid {his} ball]")
    return [
        '''{P} had a [pretty|lovely|nice] {b} {where}. "[Please be careful|Do not play too close to it]," {P}
        always said. {Day}, {P} [went out|was busy outside]. {H} {how}. Crash! The {b} [broke|was
        broken].'''
        if broke != "window" else
        '''{Day}, {P} [was busy|was inside]. "[Please do not play so close to the house|Be careful with that
        ball]," {P} had said. But {H} {how}. Crash! The {b} was broken.''',
        '''{H} [stood very still|turned pale|held {his} breath]. "[Oh no! What have I done|What shall I do
        now]?" {he} said. {He} was afraid that {P} would be angry. So {he} {hide}. When {P} came [back|in],
        {P} asked, "What happened to the {b}?" "[I do not know|Maybe it was the wind|It was not me]," said
        {H}.''',
        '''But {H} [did not feel good|felt bad]. [{His} tummy hurt.|At supper, {he} could not eat.|{He} could
        not look {P} in the eye.] {Ff} [came to play|came by], but {H} [did not want to play|could not
        laugh]. {H} told {F} everything. "[You should tell the truth|Tell {P} the truth, and you will feel
        better]," said {F}.''',
        '''{H} [took a deep breath|was scared, but {he} was brave] and went to {P}. "I have to tell you
        something," {he} said. "[I broke the {b}|It was me. I broke the {b}]. I am so sorry." {P} was quiet
        for a moment. Then {P} [gave {him} a hug|sat down beside {him}]. "[A {b} is only a thing|I am sad
        about the {b}]. But I am glad that you told me the truth," said {P}.''',
        '''Together, they [cleaned everything up|picked up the pieces]. {H} felt [light|much better|as light
        as a feather]. [{H} learned that it is always better to tell the truth.|From that day on, {H} told
        the truth, even when it was hard.|Telling the truth is hard, but it makes the heart light.]''',
    ]


@plot(11)
def treasure_map(s: Scene) -> list[str]:
    treasure, use = s.pick(world.TREASURES)
    first, second = s.rng.sample((
        ("walk to the old well", "{H} and {F} walked to the old well"),
        ("cross the little bridge", "they crossed the little bridge"),
        ("count ten steps from the big rock", "they counted ten steps from the big rock"),
        ("turn left at the crooked tree", "they turned left at the crooked tree"),
        ("go around the pond", "they went around the pond"),
        ("follow the stone wall", "they followed the stone wall"),
        ("climb the green hill", "they climbed the green hill"),
        ("walk through the tall grass", "they walked through the tall grass"),
    ), 2)
    s.set(treasure=treasure, use=use, a1=first[0], a2=second[0], b1=first[1], b2=second[1],
          box=s.pick(("an old box", "a wooden chest", "a small iron box", "a dusty chest")))
    problem = s.pick((
        ("The box was locked.", "{H} felt around {spot2} and found a tiny key.", "The key fit!"),
        ("The ground was too hard to dig.", '"Let us ask {W}," said {H}. {Wi} came with a shovel and helped '
                                            'them dig.',
         "At last the shovel hit something."),
        ("There was nothing there.", '''{H} looked at the map again. "We held it the wrong way around!" {he}
            said. So they turned it around and tried again {spot3}.''', "And there it was."),
    ))
    s.set(inplace=s.pick(("under {his} bed", "in an old book", "{spot2} {at}", "in a bottle",
        "behind a loose brick")))
    locked = problem[0].startswith("The box")
    return [
        '''{Day}, {H} found an old piece of paper {inplace}. It was a map! [There was a red cross on it.|A
        big red cross was in the middle.] "[This is a treasure map|It shows where a treasure is]," {he} said.
        {He} ran to show it to {Ff}. "[Let us find it|Let us go on a treasure hunt]!" {SAIDF}.''',
        '''The map said, "{A1}, and then {a2}." So {b1}. [It was a long way, but they sang as they went.|{F}
        carried a small bag, and {H} carried the map.|{H} went first, and {F} came right behind.] Then {b2}.
        [{F} was tired, but {H} took {fhis} bag.|"Are we there yet?" asked {F}.|"We are very close now," said
        {H}.|]''',
        "They came to the place with the red cross. It was {spot1} {at}. "
        + ("There stood {box}. " if locked else "") + problem[0] + ''' ["Oh no," said {F}.|{F} wanted to go
        home.|They looked at each other.|"What now?" asked {F}.] ''' + problem[1] + " " + problem[2],
        ("{H} opened the lid slowly. " if locked else "It was {box}. {H} opened it slowly. ")
        + '''Inside was {treasure}! "[We found it|Hooray|I can't believe it]!" [cried|shouted] {F}. "[What
            shall we do with it|Is it all for us]?" {fhe} asked. {H} thought for a moment. "[I know|I have an
            idea]. [We will|Let us] {use}," {he} said.''',
        '''And that is just what they did. [{H} learned that a treasure is best when you share it.|But the
        best treasure was the fun they had together.|{H} kept the old map on the wall.|It was the best
        treasure hunt ever.|{F} said that {H} was the best friend of all, and that was a treasure, too.]''',
    ]


@plot(11)
def get_lost(s: Scene) -> list[str]:
    lure = s.pick(("a blue butterfly", "a little white rabbit", "a red bird", "a golden leaf in the wind",
        "a dancing dragonfly",
                   "a long line of ants", "a tiny green frog"))
    s.elder("wise")
    guide = s.pick((
        ("Listen for the river, and walk beside it", "{H} listened. Far away, {he} heard the water. {He} "
                                                     "walked beside it"),
        ("Look for the highest tree, because your home is close to it", "{H} looked up and saw the highest "
                                                                        "tree. {He} walked toward it"),
        ("Follow the star that shines the brightest", "{H} looked up and found the brightest star. {He} "
                                                      "followed it"),
        ("Look for your own footprints on the ground", "{H} bent down and found {his} own footprints. {He} "
                                                       "followed them back"),
        ("Follow the little white stones", '''{H} saw the little white stones on the ground. {He} followed
            them, one by one'''),
        ("Come with me, I know the way", "{H} stayed close behind {W}. They went on and on"),
    ))
    s.set(lure=lure, guide=guide[0], did=guide[1])
    s.set(helper=s.keys["W"].removeprefix("the ") if s.keys["W"].startswith("the ") else "stranger")
    return [
        '''{Day}, {P} said, "[Do not go too far|Stay close to home|Please stay on the path]." "[Yes, {P}|All
        right|I will be careful]," said {H}. {H} went {to} to play. [{View}.|] Then {he} saw {lure}.''',
        '''{H} [followed it|went after it], [on and on|farther and farther|step by step]. [{He} forgot what
        {P} had said.|{He} did not look at the path.] When {he} stopped, [everything looked strange|nothing
        looked the same|{he} did not know the place]. "[Where am I|Which way is home]?" said {H}. {He} ran to
        the left, but [there were only trees|there was only a big rock]. {He} ran to the right, but [there
        were only bushes|the path ended]. {SAD}''',
        '''"Who is there?" [asked|said] a [soft|deep|kind] voice. It was {Wi}. "I am {H}, and I am lost,"
        said {H}. "[Do not be afraid|Do not cry, little one]. {guide}," said {W}.''',
        '''{did}. [Slowly|Little by little], {he} began to know the way. [There was the old fence!|There was
        the path!|There was the little bridge!] And then {he} saw {his} home. {P} was standing outside. "{H}!
        [There you are|I was so worried]!" cried {P}, and {phe} held {him} tight.''',
        '''"I am sorry that I went so far," said {H}. "[I am just happy that you are home|You are safe now],"
        said {P}. [From that day on, {H} stayed close to home.|After that, {H} always told {P} where {he} was
        going.|{H} never forgot the kind {helper}.|{H} learned to listen to {P}.]''',
    ]


@plot(11)
def make_gift(s: Scene) -> list[str]:
    gift, stuff, how = s.pick(world.HANDMADE)
    s.set(gift=gift, stuff=stuff, how=how, noun=gift.split(" ", 1)[1])
    s.elder("neighbor wise" if s.world == "child" else "wise")
    return [
        '''Soon it would be {P}'s birthday. {H} wanted to give {phim} something special. {He} went [to the
        shop|to look in the shops], but everything cost too much. {H} had [only one coin|only two small
        coins|no money at all]. {SAD}''',
        '''{Day}, {N} told {Wi} about it. "I want to give {P} a gift, but I [have no money|cannot buy
        anything]," said {H}. "[The best gifts are made with love|A gift does not have to cost money|You can
        make something yourself]," said {W}. {H} thought about that. [Then {his} eyes began to shine.|Then
        {he} had an idea.] "I will make {gift}!" {he} said.''',
        '''{H} [found|got|took] {stuff} and went to work. {He} {how}. [Once it went wrong, and {he} had to
        start again.|It was not easy, and {he} had to try many times.|It took a whole day.] {Ff} came to see.
        "[That is so pretty|{P} will love it|You made that all by yourself]!" said {F}.'''
        if "song" not in gift else
        '''{H} [had|found] {stuff} and went to work. {He} {how}. [It was not easy, and {he} had to try many
        times.|It took a whole day.] {Ff} came to listen. "[That is so pretty|{P} will love it]!" said
        {F}.''',
        '''At last the birthday came. {H} [was very nervous|could hardly wait]. "Happy birthday, {P}! [I made
        this for you|This is for you]," said {H}, and {he} '''
        + ("gave {P} the {noun}" if "song" not in gift else "sang the song") + '''. {P}
            [looked at {him} for a long time|was quiet for a moment|had tears in {phis} eyes]. "[It is the
            most beautiful gift I have ever had|This is better than anything from a shop|I will keep it
            forever]," said {P}.''',
        '''{P} gave {H} a big hug. [{H} learned that the best gifts come from the heart.|{H} was proud and
        happy.|A gift made with love is worth more than gold.]''',
    ]


@plot(9, only="child animal")
def tidy_up(s: Scene) -> list[str]:
    s.thing("toy keep wear")
    other = s.draw_thing({"toy", "keep"}, s.keys["T"], "O")
    s.set(**other)
    s.set(mess=s.pick(("There were toys on the floor, and socks on the lamp", "There were books under the "
                                                                              "table and crumbs on the bed",
                       "There were paper, paint and old leaves everywhere", "You could not see the floor at "
                                                                            "all")),
          trip=s.pick(("stepped on", "tripped over", "slipped on")))
    return [
        '''{H}'s room was [a big mess|very messy|never tidy]. {Mess}. "[Please clean up your room|You should
        tidy up, {H}]," said {P}. "[Later|I will do it tomorrow|I do not want to]," said {H}.''',
        '''{Day}, {Ff} [came to visit|was at the door]. "[Let us go outside and play with your {Ts}|Bring
        your {Ts}, and let us go out]!" said {F}. {H} looked for the {Ts}. {He} looked under the bed. {He}
        looked behind the chair. {He} [looked|dug] in the big heap on the floor. But {he} could not find it.
        Then {he} {trip} a {Of} and fell down. "[Ouch|Ow]!" said {H}. {SAD}''',
        '''"[If you clean up, you will find it|I think we have to tidy up first|We will never find it in this
        mess]," said {F}. "[It will take too long|There is too much to do]," said {H}. "[I will help you|We
        can make it a game|Let us sing while we do it]," {SAIDF}.''',
        '''So they began. {H} put the [books|big things] on the shelf, and {F} put the [socks|small things]
        in a box. [They sang a funny song.|They made a race out of it.|It was more fun than {H} had thought.]
        Soon they could see the floor again. And there, under the last [shirt|pile|blanket], was the
        {Ts}!''',
        '''{GLAD} "[Look how nice it is|Your room looks wonderful]," said {P}. {THANKF} Then they went out to
        play. [From that day on, {H} put {his} things away every evening.|{H} learned that a tidy room makes
        life easier.|After that, {H} always knew where {his} {Ts} was.]''',
    ]


@plot(10)
def sick_friend(s: Scene) -> list[str]:
    gift, effect = s.pick(world.COMFORTS)
    second, effect2 = s.pick([c for c in world.COMFORTS if c[0] != gift])
    s.set(gift=gift, effect=effect, gift2=second, effect2=effect2, ill=s.pick((
        "has a bad cold", "has hurt {fhis} foot", "has a fever", "has a sore throat", "has a tummy ache")))
    s.set(rested="stayed in bed and had to rest")
    s.set(game=s.pick(world.GAMES))
    return [
        '''{Day}, {H} waited for {Ff} {at}. They wanted to play {game}. But {F} did not come. {H} waited [and
        waited|a long time]. "[Where can {F} be|Why is {F} so late]?" {he} said. Then {Wi} came by. "{F}
        {ill} and has to stay in bed," said {W}.''',
        '''"[Oh no|Poor {F}]!" said {H}. [{He} was sad, but not because of the game.|{He} wanted to do
        something for {F}.|{He} thought about what {he} could do.] "What can I do to make {F} feel better?"
        {he} asked. "[Bring {fhim} something nice|Go and visit {fhim}|A little kindness is good medicine],"
        said {W}.''',
        '''{H} went home and [got|found] {gift}. {P} [helped {him}|gave {him} a basket to carry everything]
        and [added|put in] {gift2}. Then {H} walked [all the way |]to {F}'s home and knocked [softly|on the
        door]. "Come in," said a weak voice.''',
        '''{F} lay in bed and looked [pale|sad|tired]. But when {fhe} saw {H}, {fhe} smiled. "[I brought
        you|This is for you. It is] {gift}," said {H}. {Effect}. Then {H} gave {fhim} {gift2}. {Effect2}. {H}
        sat by the bed and told {fhim} [funny stories|a funny story|all the news] until {fhe} laughed.''',
        '''"[I feel better already|You are the best friend in the world|Now I feel much better]," said {F}.
        [A few days later|The next week|Soon], {F} was well again. They went {to} and played {game} at last.
        [{H} learned that a kind visit can be the best medicine.|{H} was glad that {he} had helped {his}
        friend.|A good friend comes when you are not well.]''',
    ]


@plot(11)
def strange_sound(s: Scene) -> list[str]:
    sound, guess, source, where, why, did = s.pick([n for n in world.NOISES if s.hero.kind.noun not in n[2]])
    s.set(sound=sound, guess=guess, source=source, where=where, why=why, did=did, noun=source.split(" ",
        1)[1])
    brave = s.chance(0.5)
    s.set(guess2=guess.split(" ", 1)[1] if guess.startswith(("a ", "an ")) else guess)
    return [
        '''One [night|evening], {H} heard a strange sound. "{Sound}," it went. {H} sat up. "[What is
        that|What could it be|Who is there]?" {he} whispered. "{Sound}," it went again. {H} thought of
        {guess}. {He} [pulled the blanket over {his} head|held {his} breath|did not dare to move].''',
        '''{He} [ran|tiptoed] to {Pi}. "[There is {guess} out there|I hear {guess}]," said {H}. {P} listened.
        "[I do not hear anything|It is only your dream]," said {P}. But then it came again. "{Sound}!" "There
        it is!" said {H}. "[Let us go and look|Let us find out together]," said {P}.'''
        if brave else
        '''{Ff} was staying with {him} that night. "[Did you hear that|Do you hear it, too]?" asked {H}.
        "[Yes, I did|Yes]. Maybe it is {guess}," said {F}. [They both shook with fear.|They looked at each
        other with big eyes.] "We [must|have to] find out what it is," said {H}. {He} took a [lamp|little
        light], and {F} held on to {him}.''',
        '''[Step by step|Slowly|Very quietly], they went closer. The sound got louder. "{Sound}!" It came
        from somewhere {where}. {H}'s heart went thump, thump, thump. {He} [counted to three|took a deep
        breath] and [held up the light|looked]. There was no {guess2} at all. It was only {source}!''',
        '''{H} began to laugh. It made the sound because {why}. "[And I thought it was {guess}|I was afraid
        of nothing at all]!" {he} said. '''
        + ("{P} laughed, too." if brave else "{F} laughed, too.") + " They {did}. [Then the night was quiet "
                                                                    "again.|Soon everything was quiet.|]",
        '''[{H} learned that many scary things are not scary when you look at them.|From that day on, {H} was
        not so afraid of strange sounds.|After that, {H} always went to look before {he} got scared.|{H} went
        back to bed and was not afraid anymore.]''',
    ]


@plot(10)
def stage_show(s: Scene) -> list[str]:
    act, acted, event, went_wrong = s.pick(world.SHOWS)
    s.set(act=act, acted=acted, event=event.replace("village", "big") if s.region != "village" else event,
        wrong=went_wrong)

    return [
        '''Soon there would be {event}, and {H} wanted to {act} for everyone. {He} [practiced every
        day|practiced at home until it was perfect|practiced in front of {P}]. "[You are wonderful|That was
        very good]," said {P}. But {H} was [worried|nervous]. "[What if I make a mistake|What if they laugh
        at me]?" {he} asked. "[Then you just try again|Just do your best]," said {P}.''',
        '''The [great|big] day came. {Ff} went first and did very well. Then it was {H}'s turn. {He} walked
        to the front. [So many eyes looked at {him}!|There were so many faces!] {H} [felt {his} knees
        shake|felt hot and cold]. {He} started, but then {he} {wrong}. [Somebody laughed.|It was very quiet.]
        {H} ran [away|off] and [hid behind the curtain|began to cry].''',
        '''{F} came after {him}. "[I was afraid, too|My knees were shaking, too]," said {F}. "[Really|You
        were]?" asked {H}. "Yes. [Just look at me|Just think of something nice|Pretend that I am the only one
        here]. [You can do it|I know that you can do it]." {H} dried {his} eyes.''',
        '''{H} went back to the front. {He} looked at {F}, and {F} [smiled|nodded]. [{He} took a deep
        breath.|{He} counted to three.] Then {he} {acted}. At first {he} was [very quiet|a bit slow], but
        soon {he} forgot all about {his} fear. When it was over, everyone [clapped and clapped|stood up and
        cheered].''',
        '''{GLAD} "[You were wonderful|I am so proud of you]," said {P}. {THANKF} [{H} learned that a friend
        can make you brave.|From that day on, {H} was not afraid to make mistakes.|{H} knew that it is all
        right to try again.|After that, {H} and {F} always practiced together.]''',
    ]


@plot(10)
def magic_wish(s: Scene) -> list[str]:
    s.thing("keep")
    giver = s.pick(("a tiny fairy", "a golden fish", "a little star", "a silver bird", "a small ghost"))
    need = s.pick((
        ("the old well was empty, and nobody had water", "water for everyone", "The well filled up with "
                                                                               "clear, cool water"),
        ("{F} was sick and had to stay in bed", "{F} to be well again", "{F} jumped out of bed and laughed"),
        ("the bridge was broken, and nobody could cross the river", "a new bridge",
            "A strong new bridge stood over the river"),
        ("the flowers were all dry and brown", "rain for the flowers", "Soft rain fell, and all the flowers "
                                                                       "opened"),
        ("{P} was tired from so much work", "a day of rest for {P}", "All the work was done, and {P} could "
                                                                     "rest at last"),
        ("{F} had lost {fhis} way in the fog", "the fog to go away", "The fog went away, and {F} came "
                                                                     "running down the path"),
    ))
    s.set(giver=giver, g=giver.split(" ")[-1], need=need[0], wish=need[1], result=need[2], own=s.pick((
        "a mountain of candy", "a crown of gold", "a room full of toys", "a flying bed",
            "the biggest cake in the world")))
    found_it = s.pick(("was caught in a net", "was stuck under a stone", "had fallen into a deep hole",
        "was tangled in a thorny bush"))
    s.set(stuck=found_it)
    return [
        '''{Day}, {H} [was walking|went] {to}. [{View}.|] There {he} saw {giver}. It {stuck} and could not
        get out. "[Please help me|Help, help]," it said in a [small|high] voice. {H} [did not wait|was very
        careful] and set it free.''',
        '''"[Thank you, kind {H}|You saved me]," said the {g}. "[I will give you one wish|You may have one
        wish]. [Think about it well|But only one]." Then it gave {him} a {Tf}. "[Hold this and say your wish
        out loud|Hold this tight when you are ready]," it said, and it was gone.''',
        '''{H} [thought and thought|did not know what to choose]. {He} could wish for {own}. [That would be
        wonderful!|What fun that would be!] {He} ran home with the {T} in {his} {hand}. But when {he} got
        there, everybody looked sad. "{WRONG}?" asked {H}. {Wi} told {him} that {need}.''',
        '''{H} looked at the {Ts}. {He} thought of {own}. [Then {he} thought of the others.|Then {he} shook
        {his} head.] {He} held the {T} tight. "I wish for {wish}," {he} said. There was a [flash|bright
        light|soft, ringing sound]. {Result}!''',
        '''[Everyone cheered.|Everybody was happy.] "[You gave your wish away for us|You have a big heart,
        {H}]," said {W}. {H} [smiled|was not sad about {own}]. [{H} learned that the best wish is one that
        helps others.|Making others happy was better than any magic.|And from far away, the {g} smiled,
        too.]''',
    ]


@plot(11)
def cross_river(s: Scene) -> list[str]:
    goal = s.pick(("the sweetest berries grew", "the best flowers grew", "there was a field full of "
                                                                         "butterflies",
                                                                             "{P} was waiting with a picnic",
                   "the big fair was", "the tallest apple tree stood", "there was a hill that was perfect "
                                                                       "for rolling down"))
    way = s.pick((
        ("lay a long log across the water", "They found a long log and pushed it across the water",
            "walked over it, one foot after the other"),
        ("step from stone to stone", "They found six big, flat stones and put them in a row",
            "jumped from stone to stone"),
        ("make a raft", "They tied some old boards together", "pushed the raft to the other side"),
        ("use my little boat", "The boat was small and blue, but it was dry inside",
            "rowed to the other side"),
    ))
    s.set(goal=goal, plan=way[0], made=way[1], crossed=way[2])
    s.elder("wise neighbor" if "boat" not in way[0] else "neighbor wise")
    s.set(goalthere=goal + (" there" if not goal.endswith(("was", "picnic")) else " there"))
    return [
        "{Day}, {H} and {Ff} wanted to go to the other side of the river, because {goalthere}."
        + ''' They [packed some food|took a basket] and walked to the water. But when they came to the river,
            the bridge was gone! [The big rain had washed it away.|It had fallen down in the storm.]''',
        '''"[What shall we do|How can we get across]?" asked {F}. "[I will jump|Maybe we can jump]," said
        {H}. {He} took a [long|big] run and jumped. Splash! {H} landed in the [cold water|mud near the bank].
        {F} [pulled {him} out|helped {him} out]. {H} was wet [from head to toe|all over]. ["That was a bad
        idea," {he} said, and they both laughed.|"That did not work," {he} said.]''',
        '''{Wi} [was sitting|was resting] on the bank and had seen it all. "[Jumping is not the way|You will
        never jump that far]," said {W}. "You could {plan}."'''
        + ''' "[That is a great idea|We can do that]!" said {H}. {Made}. [It was hard work, but they did it
            together.|{H} and {F} worked well together.|{W} helped them, too.]''',
        '''[Very carefully|Slowly and carefully], {H} and {F} {crossed}. [{F} was a bit scared, so {H} held
        {fhis} {fhand}.|{F} went first, and {H} came after.|The water splashed below them.] "[We made it|We
        are across]!" [shouted|cried] {H}. {F} [cheered|jumped up and down]. {H} waved back at {W}.''',
        '''[They had a wonderful day there.|It was just as nice as they had hoped.|They stayed there until
        the sun was low.] [On the way home, they brought a gift for {W}.|{H} learned that thinking first is
        better than jumping first.|Two heads are better than one.|{H} was glad to have a friend like
        {F}.]''',
    ]


@plot(11)
def quarrel(s: Scene) -> list[str]:
    s.thing("toy")
    games = s.rng.sample(world.GAMES, 2)
    s.set(g1=games[0], g2=games[1])
    cause = s.pick((
        ('''{Day}, {H} and {Ff} [were {at}|met {at}]. [{View}.|] "Let us play {g1}," said {H}. "No, I want to
            play {g2}," said {F}. "{G1}!" said {H}. "{G2}!" said {F}.''', "First they played {g1}, and then "
                                                                          "they played {g2}."),
        ('''{Day}, {H} and {Ff} found a {Tf} {at}. [{View}.|] "I saw it first," said {H}. "No, I did," said
            {F}. {H} pulled on one side, and {F} pulled on the other.''', "They took turns with the {Ts}, "
                                                                          "and nobody pulled anymore."),
        ('''{Day}, {H} and {Ff} built a tower of stones {at}. [{View}.|] Then {F} [bumped into it|ran past
            it], and it fell down. "You broke it!" said {H}. "I did not mean to," said {F}. "You always break
            everything!" said {H}.''', "They built a new tower, and it was even taller than the first."),
        ('''{Day}, {H} and {Ff} wanted to paint a big picture together. "The sky must be blue," said {H}.
            "No, it must be pink," said {F}. {H} painted over the pink, and {F} painted over the blue.''',
                '''They painted a sky that was blue on one side and pink
             on the other, like a sunset.'''),
    ))
    s.set(again=cause[1])
    return [
        cause[0] + " [They both got very angry.|Soon they were shouting.|They both got louder and louder.]",
        '''"[I do not want to play with you anymore|You are not my friend anymore|Then I will go home]!"
        [cried|shouted] {F}. "[Good|Fine]!" said {H}. They [turned their backs on each other|went different
        ways]. {H} sat down {sit1}. [It was very quiet now.|{H} did not feel good at all.] It was no fun to
        be alone.''',
        '''[{Wi} came and sat down next to {him}.|{Wi} had heard them shouting.] "{WRONG}?" asked {W}. "{F}
        and I had a fight," said {H}. "[Do you miss {fhim}|What matters more, the fight or your friend]?"
        asked {W}. {H} thought about it. "I miss {F}," {he} said [softly|]. "[Then go and tell {fhim}|A kind
        word can fix a fight|Somebody has to say sorry first]," said {W}.''',
        '''{H} [stood up|took a deep breath] and went to look for {F}. {F} was sitting {sit2}, and {fhis}
        eyes were red. "I am sorry, {F}," said {H}. "[I was not nice|I should not have shouted|I was wrong]."
        "[I am sorry, too|Me, too]," said {F}. "[I missed you|I was angry, but now I am only sad]." They
        [hugged each other|looked at each other and smiled].''',
        '''{Again} [{H} learned that saying sorry makes things better.|From that day on, they listened to
        each other.|A friend is worth more than being right.|After that, {H} and {F} did not fight so
        often.]''',
    ]


@plot(9)
def helping_work(s: Scene) -> list[str]:
    s.elder("neighbor" if s.world == "child" else "wise neighbor")
    work, steps, reward = s.pick((
        ("carry a heavy basket home", '''{H} took one side, and {W} took the other. They had to stop and rest
            three times''',
         "a bag of sweet plums"),
        ("pick all the apples before the frost", '''{H} picked the low ones, and {W} picked the high ones.
            Soon the baskets were full''',
         "a big basket of apples"),
        ("sweep up the leaves", '''{H} swept the leaves into a big pile, and {W} put them in a bag. The wind
            blew some away, but they swept them up again''', "a jar of honey"),
        ("paint the old fence", '''{H} painted the bottom, and {W} painted the top. {H} got paint on {his}
            nose''', "a new paintbrush"),
        ("bring in the hay before the rain", '''{H} ran back and forth with the hay, and {W} stacked it up.
            The last bit was safe when the first drop fell''', "a ride on the hay cart"),
        ("find the lost sheep", '''{H} looked behind every bush and called and called. At last {he} heard a
            quiet baa and found it behind a rock''',
         "a soft ball of wool"),
        ("wash all the windows", "{H} washed, and {W} dried. {H} made funny faces in the clean glass",
            "a warm apple cake"),
        ("water all the flowers", "{H} carried the water, and {W} poured it. Every flower got its share",
            "a bunch of roses"),
    ))
    s.set(work=work, steps=steps, reward=reward, why=s.pick(("{his2} back hurt", "{whe} was very tired",
        "{whe} had a cold",
                                                             "there was too much to do",
                                                                 "{whe} had hurt {whis} arm")),
          his2=s.keys["whis"])
    s.set(game=s.pick(world.GAMES))
    return [
        '''{Day}, {H} wanted to go {to} and play {game} with {Ff}. On the way, {he} [met|saw] {Wi}. {W}
        looked [worried|tired|sad]. "{WRONG}?" asked {H}. "I have to {work}," said {W}, "but I cannot do it
        alone." It was hard for {whim} because {why}.''',
        '''{H} thought of {his} friend and the game. {He} really wanted to play. But {he} also wanted to
        help. "[The game can wait|I can play later]. I will help you," said {H}. "[Oh, thank you|You are so
        kind]," said {W}.''',
        '''They [began at once|got to work]. {Steps}. [It was hard work, but {H} did not stop.|{H} was tired,
        but {he} did not stop.|They sang while they worked.] Then {F} came along. "[I was waiting for you|Why
        did you not come]?" asked {F}. "I am helping {W}," said {H}. "Then I will help, too!" said {F}.''',
        '''With three of them, the work was [soon done|done in no time]. "[I could not have done it without
        you|You saved my day]," said {W}, and {whe} gave them {reward}. "[You did not have to do that|Thank
        you so much]," said {H}. But {W} only [smiled|laughed].''',
        '''Then {H} and {F} went {to} and played {game} until [dark|it was late]. [{H} learned that helping
        others feels good.|{H} was tired, but {his} heart was full.|Work is fun when you do it together.|From
        that day on, {H} often went to help {W}.]''',
    ]


@plot(8)
def too_small(s: Scene) -> list[str]:
    """The hero is teased for being different, and the difference saves the day."""
    noun = s.hero.kind.noun
    little = noun in ("mouse", "fairy", "mole", "chick", "duckling", "frog", "gnome")
    unfit = "small" if noun == "giant" else "tall" if little else ""
    trait, tease, trouble, save = s.pick([row for row in (
        ("small", "You are too small to play with us", '''{F}'s key had fallen into a deep crack in the
            rocks, and nobody could reach it''',
         "{H} was so small that {he} could crawl into the crack and get the key"),
        ("slow", "You are too slow to play with us", '''{F} could not find the ring that had dropped in the
            grass, because everybody ran past it''',
         "{H} walked so slowly that {he} saw the ring between the leaves"),
        ("loud", "You are too loud to play with us", "{F} was lost in the fog and could not find the others",
         "{H} called so loudly that {F} could hear it and follow the sound"),
        ("quiet", "You are too quiet to play with us", "a scared baby bird hid from everybody, and {F} could "
                                                       "not help it",
         "{H} sat so quietly that the bird came out and hopped to {him}"),
        ("tall", "You are too tall to play with us", "{F}'s hat had blown up onto a high branch, and nobody "
                                                     "could reach it",
         "{H} was so tall that {he} could reach the branch and take the hat"),
    ) if row[0] != unfit])
    s.set(diff=trait, tease=tease, trouble=trouble, save=save)
    s.set(game=s.pick(world.GAMES), fa="a")
    return [
        '''{H} was very {diff}. The others {at} always played {game}, and {H} wanted to play with them. But
        {F}, who always chose the games, shook {fhis} head. "{tease}," said {F}. {SAD}''',
        '''{H} went home to {P}. "I wish I were not so {diff}," {he} said. {P} gave {him} a hug. "[You are
        just right the way you are|It is good to be {diff}. You will see|Everybody is good at something],"
        said {P}. {H} was not so sure.''',
        '''{Day}, {N} heard somebody shout for help. [{H} ran to look.|{H} went there at once.] Something bad
        had happened. {Trouble}. [They had tried everything.|Everyone had tried, but nothing worked.|Nobody
        knew what to do.] "[Let me try|Maybe I can help]," said {H}. "[You|But how]?" asked {F}.''',
        '''Then everyone saw it. {Save}! [The others cheered.|Everyone clapped.] "[You did it|You saved the
        day], {H}!" cried {F}. "[I am sorry that I was not nice to you|I was wrong about you]. Will you play
        with us?" "[Yes|Of course|I would love to]!" said {H}.''',
        '''So they all played {game} together. [{H} was glad to be just the way {he} was.|From that day on,
        nobody laughed at {H} for being {diff}.|It is good that we are not all the same.|{H} told {P} all
        about it, and {P} smiled.]''',
    ]
