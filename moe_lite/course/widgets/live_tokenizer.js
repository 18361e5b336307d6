// Byte-level BPE in plain JavaScript: what the library `tokenizers` does with a tokenizer.json of
// this kind. The page brings the pattern with every class of characters spelled out in ranges, as
// that library knows them: browsers differ in the year of their Unicode.

class Tokenizer {
  /** tokens: the bytes of each id, one character for each byte; merges: pairs of ids, the first
   *  learnt first; special: [text, id] of those that are looked for in the text as they stand. */
  constructor({ pattern, tokens, merges, special }) {
    this.bytes = tokens.map((token) => Uint8Array.from(token, (char) => char.charCodeAt(0)));
    this.size = tokens.length;
    this.cut = new RegExp(pattern, "gv");
    this.special = new Map(special);
    const plain = new Map(), isSpecial = new Set(this.special.values());
    tokens.forEach((token, id) => { if (!isSpecial.has(id)) plain.set(token, id); });
    this.idOfByte = Array.from({ length: 256 }, (_, byte) => plain.get(String.fromCharCode(byte)));
    // What two neighbours become, and when: what was learnt earlier is joined earlier.
    this.joined = new Map(merges.map(([a, b], rank) => [a * this.size + b, [rank, plain.get(tokens[a] + tokens[b])]]));
    const escaped = [...this.special.keys()].sort((a, b) => b.length - a.length).map((text) => text.replace(/[.*+?^${}()|[\]\\/]/g, "\\$&"));
    this.named = escaped.length ? new RegExp(`(${escaped.join("|")})`, "u") : null;
    this.known = new Map();
    this.spelled = new Map();
  }

  /** The ids of a text. */
  encode(text) {
    const ids = [];
    // 1. special tokens, of two that begin at one place the longer
    for (const part of this.named ? text.toWellFormed().split(this.named) : [text.toWellFormed()]) {
      if (this.special.has(part)) ids.push(this.special.get(part));
      else for (const word of this.words(part)) ids.push(...this.word(word));
    }
    return ids;
  }

  /** 2. The pieces that a merge never crosses: the pattern's, and whatever lies between them. */
  words(text) {
    const words = [];
    let end = 0;
    for (const { 0: word, index } of text.matchAll(this.cut)) {
      if (index > end) words.push(text.slice(end, index));
      if (word) words.push(word);
      end = index + word.length;
    }
    if (end < text.length) words.push(text.slice(end));
    return words;
  }

  /** 3. In each piece, from its bytes on: join the pair that was learnt first, until none is left. */
  word(word) {
    if (this.known.has(word)) return this.known.get(word);
    const ids = Array.from(new TextEncoder().encode(word), (byte) => this.idOfByte[byte]);
    for (;;) {
      let best = null, at = -1;
      for (let i = 0; i + 1 < ids.length; i++) {
        const found = this.joined.get(ids[i] * this.size + ids[i + 1]);
        if (found && !(best && best[0] <= found[0])) [best, at] = [found, i];
      }
      if (!best) break;
      ids.splice(at, 2, best[1]);
    }
    if (this.known.size < 10000) this.known.set(word, ids);
    return ids;
  }

  /** A token as it can be shown: bytes that are only a part of a character stand as ⟨E3 81⟩. */
  spell(id) {
    if (!this.spelled.has(id)) this.spelled.set(id, id < this.size ? characters(this.bytes[id]) : `#${id}`);
    return this.spelled.get(id); // a model may have more ids than its tokenizer knows
  }

  /** The text of several tokens, whose bytes may only together be characters. */
  decode(ids) {
    const bytes = ids.flatMap((id) => (id < this.size ? [...this.bytes[id]] : []));
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(bytes));
  }
}

/** Bytes as characters, and those that are none by their numbers. */
function characters(bytes) {
  const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  let text = "";
  for (let at = 0; at < bytes.length;) {
    const lead = bytes[at], size = lead < 0x80 ? 1 : lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    let end = at + size;
    try { text += strict.decode(bytes.subarray(at, end)); } catch {
      end = at + 1;
      while (end < bytes.length && (bytes[end] & 0xc0) === 0x80) end++;
      text += `⟨${Array.from(bytes.subarray(at, end), (b) => b.toString(16).toUpperCase().padStart(2, "0")).join(" ")}⟩`;
    }
    at = end;
  }
  return text;
}
