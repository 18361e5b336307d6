// Runs the live page's worker as the page does, from its text alone, in node: reads wishes (one
// JSON object) and writes what came back. Used by test_live.py.
import { readFileSync, writeFileSync } from "node:fs";
import vm from "node:vm";

const [folder] = process.argv.slice(2), read = (name) => readFileSync(`${folder}/${name}`);
const wishes = JSON.parse(read("wishes.json")), bytes = read("weights.bin"), replies = [];
globalThis.postMessage = (reply) => replies.push(structuredClone(reply));
vm.runInThisContext(`${read("worker.js")}\nglobalThis.parts = () => ({ tokenizer, plain, changed, Run, model });`);
for (const { act, ...wish } of wishes) {
  if (act === "load") wish.bytes = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
  if (act === "ids") { replies.push({ ids: wish.texts.map((text) => parts().tokenizer.encode(text)) }); continue; }
  if (act === "spell") { replies.push({ words: wish.ids.map((id) => parts().tokenizer.spell(id)) }); continue; }
  if (act === "run") { // logits and routes, as they are
    const { Run, model } = parts(), run = new Run(model, wish.question);
    for (const ids of wish.follow) run.follow(ids);
    replies.push({ logits: run.logits.map((row) => [...row]), routes: run.routes.map((layer) => layer.map(({ experts, gates }) => ({ experts, gates }))) });
    continue;
  }
  if (act === "time") {
    const { Run, model } = parts(), times = [];
    for (let i = 0; i < wish.times; i++) {
      const begun = performance.now();
      new Run(model).follow(wish.ids);
      times.push(performance.now() - begun);
    }
    replies.push({ times });
    continue;
  }
  await onmessage({ data: { act, ...wish } });
}
const plain = (key, value) => (value instanceof DataView ? Buffer.from(value.buffer).toString("base64") : value);
writeFileSync(`${folder}/replies.json`, JSON.stringify(replies, plain));
