"""The stories: each is one plot, open wherever a tale may differ from the next."""

FRAMES = """
<open>
　ふと見ると、<look>{thing}がない。<house>にも<container>の中にもない。<worry>
<meet>
「いっしょに探そう」と、<how><said>。
<together>
　{thing}は、<place>の<tree>の根もとで<shine>光っていた。
<part>

<open>
　<place>で、<look>{thing}を一{thing:counter}拾った。<neighbour>に見せ、<neighbour>に見せた。
<walk>
「<years>年前に失くした{thing}ですよ」{elder}は<how><said>。
<end>

<open>
　風が、{kin}の<colour>帽子を飛ばした。
<walk>
　<tree>の下に落ちた帽子の中で、<bird>が卵を<number>つ温めている。{kin}には、<colour>頭巾を<price>で買って帰った。
<end>

<open>
　<container>の底から、<look>{thing}が出てきた。紙がついている。「<town><address>　{elder}へ」
<walk>
「<years>年待ったよ」{elder}は<how><said>。
<end>

<open>
　交番に、<colour><clothes>の{friend}が来た。「{thing}を一{thing:counter}、<place>で落としました」
　届いているのは、<surname>さんの傘が<number>本、<surname>さんの<food>、そして{hero}の届けた{thing}だった。
<part>

<open>
　{hero}に、<colour>手紙が届いた。
「{season:month}<date>、<place>で<game>をしましょう。持ちもの　①<food>　②<drink>　③<colour>手ぬぐい　　{friend}<mark>」
<walk>
<together>
<part>

<open>
　{hero}は、<place>に住む<surname>さんに手紙を書いた。
「お元気ですか。こちらは{season:flower}の花が<number>つ咲きました。<food>と<fruit>を送ります<mark>」
<walk>
　切手は<price>だった。
<end>

<night>
　電話が鳴った。「<place>の{friend}です。<food>を<number>つ、<drink>を<number>杯ください」
　うちは<shop>ではないけれど、{hero}は寂しそうな声に気がついた。
<together>
<part>

<open>
　<place>に、<colour>びんが流れついた。中に手紙がある。
「わたしは<land>の<job>です。きのうは<fish>を<number>匹釣りました」
　{hero}は<tree>の葉と<nut>を入れて流した。<passed>。
<end>

<open>
　学校で、<number>年後の自分に手紙を書いた。
「{hero}へ。<job>になれましたか。<food>は<number>つまでですよ<mark>」
　手紙は<container>に入れて、<spot>の<tree>の下に埋めた。
<crowd>
<end>

<night>
　<house>の外に、<colour>星がひとつ落ちてきた。
「<land>の空から来たのです。腹がへって、もう飛べません」
　<food>を<number>つ、<fruit>を<number>つ食べさせると、星は<place>の空へのぼった。
<end>

<night>
「<drink>を一杯ください」戸口にいたのは、<colour><clothes>の月だった。
　月は<house>に腰かけ、<land>の<festival>の話をした。そのあいだの<number>時間、空は暗かった。
<crowd>
<end>

<open>
　<place>に雲がひとつ落ちていた。<colour>絵の具をかぶっている。
<meet>
「洗えばいいよ」と、<how><said>。ふたりは雲を<place>の水で洗い、<tree>の枝に<number>日干した。
<part>

<open>
　虹が立った。{hero}は虹の足もとを見に出かけた。
<walk>
　<colour><clothes>の<neighbour>が、虹のはしを<container>に入れている。「ひと切れ、<price>だよ」
<end>

<open>
　北風が、<shop>の看板と、<neighbour>の<food>を吹き飛ばした。
「<game>をする友だちがほしいんだ」と、北風は<how><said>。
　{hero}は<place>で北風と<number>回勝負をして、みんな負けた。
<crowd>
<end>

<night>
　流れ星が<number>つ、<place>に落ちた。
<meet>
「<vehicle>で拾いに行こう」と、<how><said>。
<together>
　<tree>の下にあったのは、<colour>金平糖だった。
<part>

<night>
　<shop>の戸が鳴った。<colour><clothes>の{friend}が、一{friend:counter}立っている。
「ひとつください」{friend}は、<nut>を<number>つ置いていった。
　あくる朝、それは<look>{thing}に変わっていた。
<crowd>
<part>

<open>
　{hero}は<shop>で働くことになった。主人の<surname>さんが、<colour>紙をはる。
「①朝は<clock>から　②昼は<chore>　③おやつは<food>　④困ったら<drink>」
　初めの日、<container>の<nut>をひっくり返した。<worry>
<end>

<open>
　<place>に店ができた。「本日の品　<food>　<price>　　<drink>　<price><mark>」
　主人は<colour><clothes>の{friend}だ。客は<neighbour>、<neighbour>、そして{hero}。
「お代は歌でもいいよ」{friend}は<how><said>。
<part>

<open>
　{hero}の夢は、<land>の<job>になることだ。
<walk>
「まず、<chore>を<number>年、<hobby>のを<number>年だね」{elder}は<how><said>。
<crowd>
<end>

<open>
　{hero}は<spot>で店を開いた。<nut>が<price>、<fruit>が<price>、<look>{thing}が<price>である。
　<clock>になっても客は来ない。<worry>
<meet>
「その{thing}をください」と、<how><said>。
<part>

<open>
　<neighbour>の店の看板が、風に飛んだ。{hero}は<colour>絵の具で、新しい看板をかいた。
「<food>　<price>　<drink>　<price>　<clock>から<mark>」
<crowd>
<end>

<open>
　{elder}は、<colour><container>に何をしまっているのだろう。
「<land>の<festival>の音と、<tree>の葉の匂いと、<surname>さんの声だよ」{elder}は<how><said>。
<crowd>
<end>

<open>
　<place>の<tree>は、<years>年も花をつけない。{hero}はその下で{instrument}を{instrument:played}。
　<number>日目に<bird>が来た。あくる日は<neighbour>が来た。その次の日、<colour>花が<number>つ開いた。
<crowd>
<end>

<open>
　<clock>になると、<place>から怪しい音がする。
<meet>
「見に行こう」と、<how><said>。
　<tree>の下で、{elder}が{instrument}を練習していた。
<part>

<open>
　{hero}は<festival>で{instrument}を{instrument:play}ことになった。<worry>
<meet>
「ここを<place>だと思えばいい」と、<how><said>。
<crowd>
<part>

<open>
　{hero}の{instrument}が鳴らない。中で、<colour><clothes>の{friend}が眠っている。
「ごめん。<land>の夢を見ていた」{friend}は<how><said>。
<together>
<part>

<open>
　<house>のオルゴールから、知らない曲が流れた。
「<land>の<surname>さんが、{instrument}で聞かせてくれた曲だ」{kin}は<how><said>。
<walk>
　{hero}は<tree>の下で{instrument:playing}みた。
<end>

<open>
　<game>のことで、{hero}は{friend}とけんかをした。<worry>
　<clock>、<food>を<number>つ持って<place>へ向かうと、{friend}も<fruit>を<number>つ抱えてくる。
「ごめんね」は同時だった。
<part>

<open>
　{hero}の組に、<land>から転校生が来た。<colour><clothes>の{friend}である。名は<pet>という。
<together>
　<number>日目には、ふたりは<spot>で<game>をしていた。
<part>

<open>
　{friend}が<land>へ越していく。{hero}は<colour>紙に包んで、<look>{thing}を贈った。
　<clock>、<spot>から<vehicle>が出る。「{thing}を見たら思い出すよ」{friend}は<how><said>。
<end>

<open>
　今日は{hero}の誕生日だ。なのに<neighbour>も<neighbour>も、知らん顔をしている。<worry>
<meet>
　そっとついていくと、<place>には<food>と<drink>が並び、ケーキのろうそくが<shine>ともっていた。
<part>

<open>
　{hero}と{friend}は<place>で<game>をした。賭けたのは<food>である。
　<number>回やって、{friend}が<number>回勝った。審判は<neighbour>だ。
<together>
<part>

<open>
　影が、{hero}を置いて逃げた。
<walk>
　影は<tree>の下で、{friend}の影と<game>をしている。
「<clock>まで待っておくれ」影は<how><said>。
<part>

<night>
　<house>で音がする。{hero}は<container>をかぶり、そっとのぞいた。
　いたのは<colour><clothes>の{friend}だった。「<look>{thing}を探していたんだ」
　ふたりは<drink>を飲み、朝まで<land>の話をした。
<part>

<open>
　<spot>まで来て、雨になった。{hero}の傘は<colour>小さな傘だ。
<meet>
「入れておくれ」と、<how><said>。
　ふたりは<shop>を過ぎ、<place>を過ぎ、<clock>までかかって帰った。
<part>

<open>
　<tree>の木から、<bird>のひなが落ちていた。<worry>
<meet>
「<container>をかして」と、<how><said>。
　ひなを巣に戻すと、<neighbour>が<food>をくれた。
<part>

<open>
　{hero}は<place>で、<colour>{fish}を釣った。
「放してくれたら、<land>の<festival>の話をしよう」と、{fish}は<how><said>。
　話は<clock>まで続いた。
<crowd>
<end>

<open>
　<place>で、{friend}が足を痛めていた。{hero}は<colour>布を巻き、<food>と<fruit>をやった。
「お礼に、<drink>の泉を教えよう」{friend}は<how><said>。
<together>
<part>

<open>
　畑の{vegetable}が、毎朝<number>つ減る。{hero}は<clock>まで見張った。
　来たのは<colour><clothes>の{friend}だった。「<place>で、子どもが<number>匹待っています」
<crowd>
<part>

<night>
　<place>で、夜の学校が開かれる。生徒は<neighbour>と<neighbour>、それに{hero}だ。
「一時間目は<game>、二時間目は<land>の言葉、三時間目は<hobby>こと」先生の{friend}は<how><said>。
<together>
<part>

<open>
「<weekday>の<clock>に、雨が降るよ」{friend}は<food>を食べながら、<how><said>。
　<neighbour>も<neighbour>も笑った。けれどもその日、雨は<spot>にも<place>にも降った。
<crowd>
<part>

<open>
　{elder}に、種を<number>粒もらった。{hero}は<house>の前にまき、<drink>をやった。<passed>。
　ある朝、<colour>花が<shine>開いた。中には<look>{thing}が一{thing:counter}入っている。
<crowd>
<end>

<open>
　<place>の案山子が、<colour>帽子をほしがった。{hero}は市で、<price>の帽子を買ってきた。
　その晩、戸の外に<fruit>と<nut>と、手紙があった。
「ぼうしをありがとう。<bird>と<neighbour>にほめられました<mark>」
<end>

<open>
　絵描きの{friend}は、<place>の絵をかいていたが、{colour}絵の具がない。
　{hero}は<vegetable>の皮と<tree>の葉を、<drink>で煮た。{colour}汁が<number>杯できた。
<crowd>
<part>

<open>
　{kin}が、<land>の菓子を教えてくれた。
「①粉を<number>杯　②<drink>を<number>杯　③<vegetable>を少し　④<clock>まで焼く」
　できたものは、石のように固かった。
<crowd>
<end>

<open>
　亡くなったおばあさんの{season:dish}には、隠し味があった。<vegetable>か、<drink>か。
<walk>
「<tree>の匙で、<surname>さんの歌を歌いながらまぜたのさ」<neighbour>が<how><said>。
<end>

<night>
　旅の<job>が、戸をたたいた。{hero}は{season:dish}と<fruit>を出し、<house>に<colour>ふとんを敷いた。
　客は<how><land>の話をした。朝には、枕もとに<look>{thing}が一{thing:counter}あるだけだった。
<end>

<open>
　<festival>の<food>が<number>つ足りない。{hero}は<shop>へ、<spot>へ、<place>へ走った。
<meet>
「うちで<tree>の葉に包んで焼いたよ」と、<how><said>。
<crowd>
<part>

<open>
　{hero}は<look>{thing}を、<neighbour>の<food>と取りかえた。<spot>で<drink>になり、<shop>で<colour>ボタンになり、<place>で<fruit>になった。
　<clock>に会った<neighbour>は、「孫の好物だ」と{hero}の手に{thing}をのせた。
<end>

<open>
　<spot>の時計が、<clock>で止まった。歯車に<look>{thing}がはさまっている。
「{friend}のだよ」<neighbour>が<how><said>。
<walk>
　時計が動きだし、{friend}は<reaction>。鐘は<number>回鳴った。
<part>

<open>
　駅の時刻表に、知らない汽車があった。「<wide><wide>番線　<clock>発　<place>行き　<price>」
　となりの席は<colour><clothes>の{friend}、前の席は<neighbour>である。
<together>
<part>

<open>
　{hero}は<vehicle>に乗り遅れた。次は<clock>である。<worry>
　待合室では、<colour><clothes>の{elder}が<drink>を飲んでいた。
「<land>で<job>をしていたころはね」{elder}は<how><said>。話は<number>時間続いた。
<end>

<open>
　<place>に橋がない。{hero}と{friend}は、<tree>の木を<number>本、<vehicle>で運んだ。
<together>
　橋ができると、まず<bird>が渡り、<neighbour>が渡った。渡し賃は<food>である。
<part>

<night>
　<late>、灯台の明かりが消えた。沖には、<surname>さんの船が<number>そういる。
　{hero}が走ると、<neighbour>はちょうちんを、<neighbour>は<colour>ランプを持ってきた。
　<place>は、灯台より<shine>光った。
<end>

<open>
　{festival}の前の日、太鼓が消えた。
<walk>
　太鼓の上で、{friend}の子が<number>匹、<colour>毛布をかけて眠っている。
　その年の{festival}は、<neighbour>の歌で始まった。
<part>

<open>
　床屋の椅子で眠り、<clock>に目をさますと、頭が<vegetable>のようになっていた。<worry>
<meet>
「<land>の<job>みたいだ」と、<how><said>。
<crowd>
<part>

<night>
　{hero}は夢の中で<vehicle>に乗り、<land>の<festival>に着いた。
　<colour><clothes>の{friend}が、<food>を<price>で売っている。
<together>
　目がさめると、<container>に<nut>があった。
<part>

<open>
　<place>で、{hero}と{friend}はかくれんぼをした。<number>十数えたが、<tree>の陰にも<shop>にもいない。
　<neighbour>に聞き、<neighbour>に聞き、<clock>になった。<worry>
「もういいよ」声は、背中の<colour><container>から聞こえた。
<part>

<open>
　{hero}は<colour>紙で舟を折り、<nut>を乗せて<place>から流した。
　<number>日たち、舟は<fruit>を乗せて戻った。「<drink>も飲みに来てください　<place>の{friend}」
<walk>
<part>

<open>
　{kin}が<colour>毛糸で手袋を編んだ。ところが指が<number>本ある。
<meet>
「ぴったりだ」と、<how><said>。礼は<food>と<fruit>だった。
<crowd>
<part>

<open>
　<spot>に、景色を売る店があった。
「<land>の<festival>が<price>、<place>の朝が<price>」{elder}は<how><said>。
　{hero}は<price>で、<house>で<hobby>{kin}の景色を買った。
<end>
""".strip("\n").split("\n\n")
