// ioredis: `node client.js HOST PORT MODE`, see tests/e2e/clients/__init__.py.
// MODE: default (commands wait in the offline queue until the ready check, INFO, has been
// answered), lazy (connects with the first command), pipeline.
"use strict";
const fs = require("node:fs");
const Redis = require("ioredis");

const [host, port, mode] = process.argv.slice(2);
const requests = fs.readFileSync(0, "utf8").replace(/\n$/, "").split("\n");

async function main() {
  const redis = new Redis({ host, port: Number(port), lazyConnect: mode === "lazy" });
  redis.on("error", (error) => {
    console.error(error);
    process.exit(1);
  });
  let replies;
  if (mode === "pipeline") {
    const pipeline = redis.pipeline();
    requests.forEach((request) => pipeline.get(request));
    replies = (await pipeline.exec()).map(([error, reply]) => {
      if (error) throw error;
      return reply;
    });
  } else {
    // All at once: ioredis itself pipelines them on its one connection.
    replies = await Promise.all(requests.map((request) => redis.get(request)));
  }
  const text = replies.map((reply) => reply + "\n").join("");
  await new Promise((done) => process.stdout.write(text, done));
  await redis.quit();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
