#!/usr/bin/env python3
"""Made-up tour spots, and searches for them, the same ones at every run.

    deploy/bench/spots.py spots 1000000 > spots.csv         what `tourin import` reads
    deploy/bench/spots.py searches 20000 > searches.txt     paths with their queries, one a line
    deploy/bench/spots.py searches 200000 --distinct        no text twice: no cache of results helps
    deploy/bench/spots.py maps 5000 > maps.txt              looks at the map

Names, districts and roads are drawn by Zipf's law, as people name and search: some words are in a
tenth of all texts, most in a few hundred.

`searches` has what many people look for, so popular texts come again and again: of 100 searches, 30 are
for a place, 15 for a district, 15 for a kind of spot or a region, 15 for a place and a kind, 10 for a
road, and 15 for two characters out of a common word.

`searches --distinct` has the same words, put together so that no text comes twice: of 100 searches,
25 are for a place and a kind, 25 for a district and a road, 15 for a road and a number, half of each cut
short at some character, as when a page searches while its user types; and 35 are for 2 to 8 neighbouring
characters of some spot's name or address.

Of both, 1 in 4 also asks for a tag, 1 in 10 for descending order, and 1 in 2 for a later page than
the first (of all 20, by Zipf's law).
"""

import argparse
import csv
import itertools
import random
import sys
from urllib.parse import quote

REGIONS = {
    "서울특별시": (37.56, 126.98, "종로구 중구 용산구 성동구 광진구 동대문구 중랑구 성북구 강북구 도봉구 노원구 은평구 서대문구 마포구 양천구 강서구 구로구 금천구 영등포구 동작구 관악구 서초구 강남구 송파구 강동구"),
    "부산광역시": (35.18, 129.08, "중구 서구 동구 영도구 부산진구 동래구 남구 북구 해운대구 사하구 금정구 강서구 연제구 수영구 사상구 기장군"),
    "제주특별자치도": (33.40, 126.55, "제주시 서귀포시"),
    "강원특별자치도": (37.82, 128.16, "춘천시 원주시 강릉시 동해시 태백시 속초시 삼척시 홍천군 횡성군 영월군 평창군 정선군 철원군 화천군 양구군 인제군 고성군 양양군"),
    "경기도": (37.41, 127.52, "수원시 성남시 의정부시 안양시 부천시 광명시 평택시 동두천시 안산시 고양시 과천시 구리시 남양주시 오산시 시흥시 군포시 의왕시 하남시 용인시 파주시 이천시 안성시 김포시 화성시 광주시 양주시 포천시 여주시 연천군 가평군 양평군"),
    "경상북도": (36.49, 128.89, "포항시 경주시 김천시 안동시 구미시 영주시 영천시 상주시 문경시 경산시 의성군 청송군 영양군 영덕군 청도군 고령군 성주군 칠곡군 예천군 봉화군 울진군 울릉군"),
    "전라남도": (34.87, 126.99, "목포시 여수시 순천시 나주시 광양시 담양군 곡성군 구례군 고흥군 보성군 화순군 장흥군 강진군 해남군 영암군 무안군 함평군 영광군 장성군 완도군 진도군 신안군"),
    "경상남도": (35.46, 128.21, "창원시 진주시 통영시 사천시 김해시 밀양시 거제시 양산시 의령군 함안군 창녕군 고성군 남해군 하동군 산청군 함양군 거창군 합천군"),
    "전북특별자치도": (35.72, 127.15, "전주시 군산시 익산시 정읍시 남원시 김제시 완주군 진안군 무주군 장수군 임실군 순창군 고창군 부안군"),
    "충청남도": (36.52, 126.80, "천안시 공주시 보령시 아산시 서산시 논산시 계룡시 당진시 금산군 부여군 서천군 청양군 홍성군 예산군 태안군"),
    "충청북도": (36.80, 127.70, "청주시 충주시 제천시 보은군 옥천군 영동군 증평군 진천군 괴산군 음성군 단양군"),
    "인천광역시": (37.46, 126.71, "중구 동구 미추홀구 연수구 남동구 부평구 계양구 서구 강화군 옹진군"),
    "대구광역시": (35.87, 128.60, "중구 동구 서구 남구 북구 수성구 달서구 달성군 군위군"),
    "대전광역시": (36.35, 127.38, "동구 중구 서구 유성구 대덕구"),
    "광주광역시": (35.16, 126.85, "동구 서구 남구 북구 광산구"),
    "울산광역시": (35.54, 129.31, "중구 남구 동구 북구 울주군"),
    "세종특별자치시": (36.48, 127.29, "조치원읍 한솔동 도담동 아름동"),
}
DISTRICTS = [
    (f"{region} {district}", lat, lng)
    for region, (lat, lng, districts) in REGIONS.items()
    for district in districts.split()
]
KINDS = "공원 해수욕장 박물관 미술관 시장 전망대 계곡 폭포 사찰 향교 서원 고택 한옥마을 둘레길 출렁다리 수목원 휴양림 캠핑장 온천 동굴 호수 저수지 섬 등대 항구 성당 기념관 문학관 체험마을 농원 목장 양조장 도예촌 벽화마을 먹자골목 야시장 광장 분수대 식물원 동물원 천문대 과학관 케이블카 모노레일 유원지 해안도로 습지 갈대밭 벚꽃길 단풍길 산성 읍성 왕릉 고분군 석탑 정자 누각 나루터 철길마을 예술촌".split()
QUALITIES = "국립 시립 도립 군립 옛 새 큰 작은 푸른 하늘 바다 구름 달빛 별빛 햇살 바람 소나무 대나무 은행나무 벚꽃 동백 매화 국화 연꽃 유채 해바라기 억새 노을 무지개 이슬".split()
ROADS = "중앙로 시청로 해안로 강변로 산성로 역전로 시장길 학교길 공원로 번영로 평화로 충무로 세종대로 을지로 통일로 동해대로 서해안로 남해대로 호수로 문화로 예술길 한옥길 벚꽃로 솔밭길 바람길 물레방아길".split()
SYLLABLES = "가나다라마바사아자차카타하강경관광구금길남내노단달당대덕도동두들림망명목무문미민방백범별보봉부북분비산삼상새서석선설성소송수순승시신실쌍안암양여연영오옥온왕용우운울원월유은의이인일임장적전정제조종주죽중지진창천철청초추충태토통평포풍하학한해향현호홍화환황회흥"
TAGS = "자연 역사 휴양 체험 산업 건축/조형 문화 축제 공연/행사".split()
WORDS = "산책하기 좋은 곳으로 사계절 경치가 아름답고 가족 나들이 장소로 널리 알려져 있다 주차장과 쉼터가 잘 갖추어져 있으며 해마다 봄이면 축제가 열린다".split()


def zipf(items, random, s=1.0):
    weights = list(itertools.accumulate(1 / (rank + 1) ** s for rank in range(len(items))))
    return lambda: random.choices(items, cum_weights=weights)[0]


class Country:
    """What names are made of; another Random gives other spots of the same country."""

    def __init__(self):
        made = random.Random(20_240_501)
        self.places = ["".join(made.choices(SYLLABLES, k=made.choice((2, 2, 2, 3)))) for _ in range(8_000)]
        self.roads = ROADS + ["".join(made.choices(SYLLABLES, k=2)) + end for end in ("로", "길", "대로") for _ in range(2_000)]
        self.districts = DISTRICTS[:]
        made.shuffle(self.districts)

    def spots(self, count):
        r = random.Random(1)
        district, place, road = zipf(self.districts, r, 0.6), zipf(self.places, r, 0.7), zipf(self.roads, r, 0.7)
        for number in range(1, count + 1):
            where, lat, lng = district()
            name = f"{place()} {r.choice(KINDS)}"
            if r.random() < 0.3:
                name = f"{r.choice(QUALITIES)} {name}"
            address = f"{where} {road()} {r.randrange(1, 400)}"
            tags = "|".join(sorted(set(r.choices(TAGS, k=r.choice((1, 1, 2, 3))))))
            # 100,000,000 and up: beside the catalogue that comes with the program.
            yield (
                100_000_000 + number,
                name,
                address,
                f"{lat + r.gauss(0, 0.25):.6f}",
                f"{lng + r.gauss(0, 0.25):.6f}",
                tags,
                " ".join(r.choices(WORDS, k=12)),
                f"0{r.randrange(2, 65)}-{r.randrange(200, 1000)}-{r.randrange(1000, 10_000)}" if r.random() < 0.6 else "",
                f"https://images.example/{number}.jpg" if r.random() < 0.5 else "",
            )

    def words(self, r):
        """A word that somebody looks for: 2 to 6 characters."""
        place, road = zipf(self.places, r, 0.7), zipf(self.roads, r, 0.7)
        district = zipf([name.split()[1] for name, _, _ in self.districts], r, 0.6)
        common = zipf(KINDS + list(REGIONS), r)
        while True:
            what = r.random()
            if what < 0.30:
                yield place()
            elif what < 0.45:
                yield district()
            elif what < 0.60:
                yield common()
            elif what < 0.75:
                yield f"{place()} {r.choice(KINDS)}"
            elif what < 0.85:
                yield road()
            else:
                # A piece of a word: people stop typing.
                word = common() + " "
                start = r.randrange(len(word) - 1)
                yield word[start : start + 2]

    def distinct_texts(self, r, count):
        place, road = zipf(self.places, r, 0.7), zipf(self.roads, r, 0.7)
        district = zipf([name.split()[1] for name, _, _ in self.districts], r, 0.6)
        some_spots = list(self.spots(20_000))
        seen = set()
        while len(seen) < count:
            what = r.random()
            if what < 0.65:
                if what < 0.25:
                    text = f"{place()} {r.choice(KINDS)}"
                elif what < 0.50:
                    text = f"{district()} {road()}"
                else:
                    text = f"{road()} {r.randrange(1, 400)}"
                if r.random() < 0.5:
                    text = text[: r.randrange(2, len(text))]
            else:
                _, name, address, *_ = r.choice(some_spots)
                whole = r.choice((name, address))
                start = r.randrange(len(whole) - 1)
                text = whole[start : start + r.randrange(2, 9)]
            text = text.strip()
            if text and text not in seen:
                seen.add(text)
                yield text

    def searches(self, count, distinct):
        r = random.Random(2)
        words = self.distinct_texts(r, count) if distinct else self.words(r)
        page = zipf(range(1, 21), r, 1.6)
        for _ in range(count):
            parameters = []
            what = r.random()
            if distinct or what < 0.85:
                parameters.append(f"query={quote(next(words))}")
            if what > 0.75:
                parameters.append(f"tags={quote(r.choice(TAGS))}")
            if (shown := page()) > 1:
                parameters.append(f"pageNo={shown}")
            if r.random() < 0.1:
                parameters.append("sort=name-desc")
            yield "/api/tour-spots?" + "&".join(parameters)

    def maps(self, count):
        r = random.Random(3)
        words = self.words(r)
        for _ in range(count):
            _, lat, lng = r.choice(self.districts)
            lat, lng = lat + r.gauss(0, 0.2), lng + r.gauss(0, 0.2)
            # From a neighbourhood to a province.
            height = 0.02 * 2 ** r.randrange(0, 7)
            box = f"minLat={lat - height:.4f}&minLng={lng - height:.4f}&maxLat={lat + height:.4f}&maxLng={lng + height:.4f}"
            more = f"&query={quote(next(words))}" if r.random() < 0.3 else ""
            yield f"/api/tour-spots/map?{box}{more}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("spots", "searches", "maps"))
    parser.add_argument("count", type=int)
    parser.add_argument("--distinct", action="store_true", help="searches: no text twice")
    arguments = parser.parse_args()
    country = Country()
    if arguments.what == "spots":
        rows = csv.writer(sys.stdout, lineterminator="\n")
        rows.writerow("id name address lat lng tags description phoneNumber imageUrl".split())
        rows.writerows(country.spots(arguments.count))
        return
    lines = country.maps(arguments.count) if arguments.what == "maps" else country.searches(arguments.count, arguments.distinct)
    sys.stdout.writelines(f"{line}\n" for line in lines)


if __name__ == "__main__":
    main()
