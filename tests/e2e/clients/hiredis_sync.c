/* hiredis: `./hiredis_sync HOST PORT MODE`, see clients/__init__.py. MODE: sync, pipeline. */
#define _GNU_SOURCE
#include <hiredis/hiredis.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int print_reply(redisContext *context, redisReply *reply)
{
	if (!reply) {
		fprintf(stderr, "hiredis: %s\n", context->errstr);
		return 0;
	}
	if (reply->type != REDIS_REPLY_STRING) {
		fprintf(stderr, "type %d: %s\n", reply->type, reply->str ? reply->str : "");
		return 0;
	}
	fwrite(reply->str, 1, reply->len, stdout);
	putchar('\n');
	freeReplyObject(reply);
	return 1;
}

int main(int argc, char **argv)
{
	int pipelined = argc == 4 && !strcmp(argv[3], "pipeline");
	redisContext *context = redisConnect(argv[1], atoi(argv[2]));
	size_t size = 0, pending = 0;
	char *line = NULL;
	ssize_t length;

	if (!context || context->err) {
		fprintf(stderr, "connect: %s\n", context ? context->errstr : "no memory");
		return 1;
	}
	while ((length = getline(&line, &size, stdin)) > 0) {
		const char *words[] = { "GET", line };
		size_t lengths[] = { 3, (size_t)length };

		if (line[length - 1] == '\n')
			lengths[1]--;
		if (pipelined) {
			redisAppendCommandArgv(context, 2, words, lengths);
			pending++;
		} else if (!print_reply(context, redisCommandArgv(context, 2, words, lengths))) {
			return 1;
		}
	}
	for (; pending; pending--) {
		redisReply *reply = NULL;

		redisGetReply(context, (void **)&reply);
		if (!print_reply(context, reply))
			return 1;
	}
	redisFree(context);
	free(line);
	return 0;
}
