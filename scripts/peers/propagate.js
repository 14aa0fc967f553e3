// When a total is seen by another worker of Node's cluster: what scripts/bench_app.py does, with the messages of counter.js.
// process.hrtime is CLOCK_MONOTONIC, one clock for all processes.
'use strict';

const cluster = require('node:cluster');
const http = require('node:http');

if (cluster.isPrimary) {
  let total = 0;
  cluster.on('message', () => {
    total += 1;
    for (const worker of Object.values(cluster.workers)) worker.send({ total });
  });
  cluster.on('exit', () => process.exit(1));
  for (let i = 0; i < Number(process.env.WORKERS); i++) cluster.fork();
} else {
  let last = 0;
  const seen = new Map();
  process.on('message', ({ total }) => {
    last = total;
    seen.set(total, process.hrtime.bigint());
  });
  http
    .createServer((request, response) => {
      const [path, query] = request.url.split('?');
      if (path === '/incr') {
        // There is no other increment meanwhile, so this is the total that it leads to; Node itself would not know.
        const answer = `${last + 1} ${process.hrtime.bigint()}`;
        process.send({ cmd: 'increment' });
        response.end(answer);
      } else if (path === '/seen') {
        response.end(`${seen.get(Number(query)) ?? 0}`);
      } else {
        response.end(`${process.pid}`);
      }
    })
    .listen(Number(process.env.PORT), '127.0.0.1');
}
