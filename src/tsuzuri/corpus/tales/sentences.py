"""The phrases and sentences that many tales share: how a tale opens, how two meet, how they part.

All know {hero} and {season}. `meet`, `together` and `part` are for tales with a {friend}.
"""

SENTENCES = {
    # Phrases.
    "town": ["<name><towntail>"],
    "place": ["<nature>", "<name><geography>"],
    "neighbour": ["<friend>の<pet>", "<shop>の<surname>さん", "<job>の<surname>さん"],
    "clock": ["<hourhand><tens><ones>分"],
    "late": ["<latehand><tens><ones>分"],
    "price": ["<digit><ones>0円"],
    "address": ["<wide><wide>番地", "<wide>丁目<wide>番地"],
    "day": [
        "{season:sign}<daypart>",
        "{season}の<sky><daypart>",
        "{season:month}<date>、<sky><daypart>",
    ],
    "passed": ["<number>日が過ぎた", "<number>週間が過ぎた"],
    "mark": ["。", "！", "♪", "🌸"],  # how one ends a letter or a notice
    "scene": [
        "{season:flower}の花が咲き、<tree>の枝で<bird>が鳴いていた",
        "<bird>が<number>羽鳴き、{season:scene}",
        "<tree>の枝に<colour>凧がかかり、{season:scene}",
        "<colour>雲が浮かび、{season:scene}",
    ],
    # Beginnings by day.
    "open": [
        "　<day>、<town>の{hero}は<kin>と<chore>を終え、<neighbour>にもらった<drink>を飲んでいた。",
        "　<town>の<shop>の<number>軒となりに、{hero}という<age>の子がいた。<day>のことである。",
        "　<town>で<trait>子といえば{hero}だ。<day>、<house>で<kin>と<fruit>を<number>つ食べていた。",
        "　<day>、<trait>{hero}は<kin>に頼まれて、<shop>へ<food>を、<spot>へ<fruit>を届けに出た。",
        "　<day>、<hobby>のが好きな{hero}は、<town>の<spot>から<place>へ出かけた。",
        "「{hero}、<vegetable>と<fruit>と、<drink>を買ってきて」<kin>が<house>から呼んだ。<day>のことだ。",
        "　<town><address>の{hero}は、<hobby>のと<food>が好きな<age>の子だ。<day>も、<house>にいた。",
        "　<day>、<trait>{hero}は<town>の<spot>のそばを、<fruit>と<food>を抱えて<steps>歩いていた。",
        "　<years>年前の{season:month}<date>、<town>の<job>の家に、{hero}という<trait>子がいた。",
        "　{hero}が<age>になった<day>、<town>の<spot>では<scene>。",
        "　<day>、<town>の{hero}は<house>で<food>をかじり、<land>の<job>のことを考えていた。",
        "　<town>の<shop>から<spot>まで、<number>百歩。<day>も、<trait>{hero}はその道を<steps>歩いた。",
        "　<day>、<neighbour>と<neighbour>が、<town>の<spot>で<game>をしていた。{hero}も入れてもらった。",
    ],
    # Beginnings by night.
    "night": [
        "　{season}の<nightsky><hour>、<town>の{hero}は<house>で目をさました。時計は<late>をさしている。",
        "　<town><address>に、<hobby>のが好きな{hero}という子がいた。{season}の<nightsky><hour>のことである。",
        "　{season:month}<date>、<nightsky><hour>。<town>の<trait>{hero}は、まだ<house>で起きていた。",
        "　<age>の{hero}は、{season}の<nightsky><hour>、<town>の家の<house>へ<drink>と<food>を取りに降りた。",
        "　{season:dish}と<fruit>と<food>を食べすぎて、{hero}は眠れなかった。<nightsky><hour>、<late>である。",
        "　<late>、<town>の<shop>の明かりが消えた。{season}の<nightsky>空の下、<trait>{hero}はまだ起きていた。",
    ],
    # A friend comes.
    "meet": [
        "　そこへ、<colour><clothes>の{friend}が来た。名は<pet>という。",
        "　<tree>の下に、<colour><clothes>の{friend}が一{friend:counter}いた。<pet>である。",
        "　<place>のほうから、{friend}の<pet>が<food>と<fruit>を抱えて来た。",
        "　<shop>の角を曲がると、<colour><clothes>の{friend}の<pet>に会った。",
        "　<tree>の陰から、<trait>{friend}の<pet>が「おや、{hero}」と出てきた。",
        "　通りかかったのは、<fruit>と<nut>を抱えた{friend}の<pet>である。",
        "　<tree>で<bird>が鳴き、<colour><clothes>の{friend}の<pet>が顔を出した。",
        "　見ると、<colour><clothes>の{friend}の<pet>が、<fruit>と<food>を食べている。",
        "　<place>から<vehicle>で来たのは、<colour><clothes>の{friend}の<pet>だった。",
    ],
    # On the way.
    "walk": [
        "　<steps>歩いて、<spot>を過ぎ、<shop>を過ぎ、<place>まで来た。",
        "　<spot>から<vehicle>に乗り、<place>に着くと、<scene>。",
        "　<place>を抜け、<spot>で<neighbour>に道を聞いた。<scene>。",
        "　道ばたの{season:flower}の花を<number>本つみ、<tree>の林を<steps>抜けて、<place>に出た。",
        "　屋台で<food>を<price>で買い、<steps>行くと、もう<place>だった。",
        "　<shop>の<number>軒先を曲がり、<spot>を<steps>過ぎると、<place>に出た。",
        "　<vegetable>の畑、<tree>の並木、<spot>。<steps>進むと、<place>が見えた。",
    ],
    "together": [
        "　ふたりは<spot>を過ぎ、<place>を<steps>歩いた。<scene>。",
        "　<place>に腰をおろし、ふたりは<food>を<number>つと<drink>を分け合った。",
        "　<food>を<number>つ出すと、{friend}は<fruit>と<drink>を出した。",
        "　<tree>の下で、ふたりは<food>を<number>つと<fruit>を食べ、<drink>を飲んだ。",
        "　ふたりは<spot>から<vehicle>に乗って、<place>まで行った。<scene>。",
        "　<spot>から<place>まで、ふたりは<game>をしながら行った。",
        "　途中の<place>で、<neighbour>が<food>と<drink>をくれた。",
    ],
    # What the others make of it.
    "crowd": [
        "　<neighbour>も<neighbour>も、<food>を持って見に来た。",
        "　<spot>では<neighbour>と<neighbour>が、<drink>を飲みながらうわさをした。",
        "　うわさは<shop>から<spot>へ、<place>の<neighbour>にまで伝わった。",
        "　<neighbour>は<fruit>を<number>つ、<neighbour>は<nut>を<number>つくれた。",
        "　それを聞いた<neighbour>は、<land>の<surname>さんに手紙を書いた。",
        "　<neighbour>はおどろいて、<food>を<number>つ落とした。",
    ],
    # Endings.
    "end": [
        "　帰り道、<neighbour>とすれ違った。<scene>。",
        "　その晩は、{season:dish}と<fruit>を<neighbour>といっしょに食べた。",
        "　家に帰ると、<kin>が{season:dish}と<drink>と<fruit>を並べて待っていた。",
        "　それからというもの、<weekday>ごとに<spot>や<place>へ行く。",
        "　家の<house>には、<neighbour>のくれた{season:flower}の花が<number>本、さしてあった。",
        "　日記にはこう書いた。「おやつは<food>と<fruit>、夕飯は{season:dish}。<scene>」",
        "「おかえり」<kin>が<house>で<how><said>。夕飯は{season:dish}、食後は<fruit>と<drink>だった。",
        "　いま、{hero}は<land>で<job>をしている。<house>には、あの日の<nut>と<tree>の葉がある。",
        "　<tree>で<bird>が鳴き、<colour>雲が浮かぶ。<glad><gladly>。",
        "　この話は、<place>に住む<neighbour>から聞いた。",
        "　あくる日の<clock>、<neighbour>と<neighbour>にも、この話をした。",
    ],
    "part": [
        "　それからは<weekday>ごとに、<place>や<place>で<game>をした。",
        "　別れぎわに、{friend}は<food>を<number>つと、<colour><nut>をくれた。",
        "「また<weekday>の<clock>に、<spot>で」{friend}は<how><said>。",
        "　{hero}の家の<house>には、{friend}の<colour>椀と<drink>が置いてある。",
        "「今度は<neighbour>もさそって、<place>で<game>をしよう」{friend}は<how><said>。",
        "　次の日、<food>と<fruit>を<container>に入れて、<place>へ{friend}をたずねた。",
        "　あとから<neighbour>と<neighbour>も来て、みんなで<game>をした。",
        "<end>",
    ],
    "worry": ["<sad><sadly>。"],
}
